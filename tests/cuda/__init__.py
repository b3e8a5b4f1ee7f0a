"""Tests of the CUDA backend without a GPU: on a simulator, as PTX, as machine code, and its host
side."""
