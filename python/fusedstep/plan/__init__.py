"""What a step can use again: made once, checked every step.

devices     where tensors lie, and moving numbers there without waiting
bucket      parameters -> buckets of what one launch holds uniform; their tables of addresses
layouts     how tensors lie in memory
staging     flat copies of tensors that cannot be walked as they lie
rows        which row of scalars each tensor of a bucket takes
counters    the step counters of the parameters
launcher    what a backend makes of a bucket: one call for a step, or phases with an exchange
watch       did any tensor move since the plan was made?
plan        all of this for one owner: an optimizer or an accumulator
cuda_graphs what a CUDA graph can capture of a step

The package imports the rules and the native module, and nothing else of fusedstep.
"""
