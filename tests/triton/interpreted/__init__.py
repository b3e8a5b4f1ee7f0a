"""Tests of Triton's kernels under its interpreter, which needs a separate run."""
