"""Triton's kernels under its interpreter, which needs a run of its own."""
