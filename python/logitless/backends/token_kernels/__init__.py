"""Losses and selection: what array functions cannot say, and the array functions."""
