"""Model types: one file each, plain torch modules from a spec and the features of the prepared data.

Every module maps `{input name: tensor}` (the arrays of a prepared dataset) to raw outputs: logits `[rows, classes]`, or
numbers `[rows]` in the standardised unit of the target.
"""
