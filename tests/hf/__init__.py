"""What only `fusedstep.hf` has, and transformers' own Trainer with it."""
