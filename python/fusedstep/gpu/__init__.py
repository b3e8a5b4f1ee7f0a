"""Host code that both GPU backends share.

cut          Adafactor: cuts tensors into units of work, in phases; plain Python
interpreter  whether Triton interprets the kernels
tables       uploads addresses, rows and scalars
unit_sizes   Adafactor: how large units are; plain Python
work         what a bucket keeps between steps: work lists, scratch
"""
