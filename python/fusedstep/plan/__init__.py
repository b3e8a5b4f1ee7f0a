"""Everything about a step that is made once, checked every step, and used again.

devices     which device a tensor is on; copies to it without waiting
bucket      groups parameters into buckets, and makes their tables of addresses
layouts     shapes, strides and dtypes of tensors
staging     flat copies of tensors that cannot be walked in place
rows        which row of scalars each tensor of a bucket uses
counters    the step counters of the parameters
launcher    the interface of backends: a step in one call, or in stages with an exchange
watch       did any tensor move since the plan was made?
plan        all of this for one owner: an optimizer or an accumulator
cuda_graphs checks whether a CUDA graph can capture a step

The package imports the rules and the native module, and nothing else of fusedstep.
"""
