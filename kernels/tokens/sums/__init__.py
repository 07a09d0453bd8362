"""Exact sums over the tokens of a call, and their means."""
