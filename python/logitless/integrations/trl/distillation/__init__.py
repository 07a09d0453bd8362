"""Losses of TRL's distillation trainers from heads, in the places where TRL has them."""
