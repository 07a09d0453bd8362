"""Losses of tokens and the sums that their batches share, without a fused operation: a token's own
numbers have the same bits on every machine."""
