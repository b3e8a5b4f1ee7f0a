"""Tests of the Triton backend without a GPU: compiled, as PTX, interpreted, and its host side."""
