"""The C++ walkers of CPUs, on processors that this machine is not."""
