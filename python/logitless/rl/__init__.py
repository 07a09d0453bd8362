"""The thin trainer: recipe -> task -> rollout -> advantages -> policy loss -> optimizer.

Nothing is imported here: `logitless.rl.recipe` and `logitless.rl.tasks` work without torch, the rest needs the `train` extra.
"""
