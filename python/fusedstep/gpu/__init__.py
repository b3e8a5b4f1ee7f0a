"""What the backends for GPUs share on the host; the kernels are Triton's or C++.

cut     Adafactor: how shapes are cut into units of work, in phases; plain Python
waves   ... the same units in one list, ordered for the L2 cache
tables  what is uploaded: addresses, rows, scalars
work    what a bucket keeps between steps: work lists, scratch
"""
