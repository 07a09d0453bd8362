"""Rows over sets of the vocabulary: logits, states and gradients of their entries alone.

The entries of all rows lie one after another: those of row i from `offsets[i]` to `offsets[i + 1]`,
their columns ascending.
"""
