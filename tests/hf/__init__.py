"""Tests of what only `fusedstep.hf` has, and of transformers' Trainer with it."""
