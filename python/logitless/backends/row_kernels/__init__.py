"""Rows of logits: their data, and what the row kernels of devices share."""
