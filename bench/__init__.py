"""fusedstep and its peers side by side on one machine: `python -m bench`."""

import os

# torch's profiler warns of every block that was there before it, in each process.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
