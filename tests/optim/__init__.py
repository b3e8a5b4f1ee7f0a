"""Tests of `fusedstep.optim` beyond a plain step: accumulating, clipping, scaling, capturing."""
