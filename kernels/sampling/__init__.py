"""Tokens drawn from rows of logits: block sums, then the draw."""
