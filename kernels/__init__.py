"""The place of the Triton backend: the rules as Triton functions, and the walkers over a plan.

There is no kernel here yet; `python -m fusedstep info` says so too.
"""
