"""Triton decides at its import whether it interprets: these tests have a process of their own.

    TRITON_INTERPRET=1 python -m pytest tests/interpreted

Without the variable nothing here is collected, so that nothing here seems to have been run.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
