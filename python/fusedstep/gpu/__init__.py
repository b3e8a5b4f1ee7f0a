"""Host code that both GPU backends share.

cut     Adafactor: cuts tensors into units of work, in phases; plain Python
waves   Adafactor: the same units in one list, ordered for the L2 cache
tables  uploads addresses, rows and scalars
work    what a bucket keeps between steps: work lists, scratch
"""
