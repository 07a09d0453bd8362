"""Given logits: the torch op and its results."""
