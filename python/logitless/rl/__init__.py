"""The thin trainer: recipe -> task -> rollout -> advantages -> policy loss -> optimizer.

`train.py` is the loop, top to bottom; each folder is one noun of it. Nothing is imported here:
recipe and tasks work without torch, the rest needs the `train` extra.
"""
