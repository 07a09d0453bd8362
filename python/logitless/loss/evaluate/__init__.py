"""A policy loss over the tokens of a call: weights, selection, values and coefficients."""
