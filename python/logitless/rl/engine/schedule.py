"""Learning rates by the step of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from logitless.rl.recipe import UpdateRecipe

# From the share of the way down that is done, in [0, 1], to the share of the rate that is left.
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: (1.0 + math.cos(math.pi * done)) / 2,
}


def share_of(update: UpdateRecipe, steps: int, step: int) -> float:
    """The share of the learning rates that step 0, 1, ... of a run of `steps` has.

    The first step has more than 0, and so has the last one of a run that falls until its end.
    """
    warm, end = update.lr_warmup, update.lr_decay_steps or steps
    if step < warm:
        return (step + 1) / (warm + 1)
    done = min(1.0, (step - warm) / max(1, end - warm))
    left = SHAPES[update.lr_schedule](done)
    return update.lr_final + (1.0 - update.lr_final) * left


def make_schedule(optimizer: Optimizer, update: UpdateRecipe, steps: int) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: share_of(update, steps, step))
