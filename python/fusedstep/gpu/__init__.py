"""Host code that both GPU backends share.

cut     Adafactor: cuts tensors into units of work, in phases; plain Python
tables  uploads addresses, rows and scalars
work    what a bucket keeps between steps: work lists, scratch
"""
