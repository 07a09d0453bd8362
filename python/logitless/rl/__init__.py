"""The thin trainer: recipe -> task -> rollout -> advantages -> policy loss -> optimizer.

Nothing is imported here: recipe and tasks work without torch, the rest needs the `train` extra.
"""
