"""The Triton backend: the rules as Triton functions, and what walks them over lists of tensors.

rules       the rules' own code objects, compiled by Triton; numbers: their operations, exact
elementwise a rule without sums: one kernel, and one launch, or two if some tensors are not aligned
matrix      Adafactor: moments and sums, in one read; matrix_elements: the update, in a second one
tiny        ... a matrix to a thread; vector: unfactored; tensor: what is known of a whole tensor
memory      ... where a unit finds its tensor, numbers and scratch; scalars: places in a row of them
dispatch    the kernel of one phase; waves: one kernel for all phases, ordered for the L2 cache
exchange    ... the phases that there are where sums are added up over processes
blocks      sizes of tiles; config: what a kernel is compiled for
launch      the host's side: prepares a bucket once, then launches; what it shares with other
            backends is in `fusedstep.gpu`, and how shapes are cut into units of work, too

`fusedstep.backends.triton` imports this package when the first plan needs it, and not before.
"""
