"""Host code that both GPU backends share.

cut          Adafactor: cuts tensors into units of work, in phases; plain Python
interpreter  whether Triton interprets the kernels
tables       uploads addresses, rows and scalars
work         what a bucket keeps between steps: work lists, scratch
"""
