"""Tests of the benchmark's commands, files and numbers. They need no GPU."""
