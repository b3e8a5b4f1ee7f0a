"""fusedstep and its peers side by side on one machine: `python -m bench`."""

import os

# Without this torch's profiler warns, in each process, of every block allocated before it started.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
