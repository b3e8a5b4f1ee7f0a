"""The Triton backend: runs the rules as Triton functions over lists of tensors.

rules       the rules' code objects, compiled by Triton; numbers: their operations, exact
elementwise a rule without sums: one kernel, one launch, or two if some tensors are not aligned
matrix      Adafactor: moments and sums, in one read; matrix_elements: the update, in a second read
tiny        ... one matrix per thread; vector: unfactored; tensor: values of a whole tensor
memory      ... where a unit finds its tensor, numbers and scratch; scalars: places in their row
dispatch    the kernel of one phase
exchange    ... the extra phases if processes add up sums
stored      how the numbers of a slot are loaded and stored: dtypes, companions, noise, codes of 8
            bits; noise: the noise, and places in the whole tensor
blocks      sizes of tiles; config: what a kernel is compiled for
launch      the host side: prepares a bucket once, then launches. `fusedstep.gpu` has what both GPU
            backends share, such as how tensors are cut into units

The first plan that needs this package imports it (`fusedstep.backends.triton`).
"""
