"""Prints C++ headers from Python: csrc/rules.h and csrc/rules/ have every rule as a struct, and
csrc/cuda/cut.h says how `fusedstep.gpu.cut` cuts tensors into work.

    python -m fusedstep.emit csrc            writes the files that changed
    python -m fusedstep.emit csrc --check    writes nothing, fails and lists stale files

`make build` does the first and compiles. A test fails while a file is stale.

text     one rule text: checks that it is straight-line arithmetic, and prints it
rules    the rules, and the facts that walkers need about each
layout   constants that all walkers share, and the fingerprint of the rules
cut      csrc/cuda/cut.h
"""
