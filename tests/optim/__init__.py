"""What `fusedstep.optim` does beyond a plain step: accumulating, clipping, scaling, capturing."""
