"""Prints the headers that C++ has from Python: csrc/rules.h and csrc/rules/, every rule of
fusedstep.rules as a struct, and csrc/cuda/cut.h, how `fusedstep.gpu.cut` cuts tensors into work.

    python -m fusedstep.emit csrc            writes what has changed
    python -m fusedstep.emit csrc --check    only says what is stale, and fails

`make build` does the first and compiles; a test fails while a file is stale.

text     one rule text: what is no straight-line arithmetic is refused, the rest is printed
rules    the rules, and what the walkers know of each
layout   what all walkers know, and the fingerprint of the rules
cut      csrc/cuda/cut.h
"""
