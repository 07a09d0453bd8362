"""The device that a recipe names."""

from __future__ import annotations

import os

import torch

from logitless.rl.engine import ranks


def claim_device(name: str) -> None:
    """Makes "cuda" this rank's own GPU, the one that torchrun counts it to.

    ValueError where torch has no such device here.
    """
    kind, _, index = name.partition(":")
    if kind == "cpu":
        return
    if not torch.cuda.is_available():
        raise ValueError(
            f"recipe key 'model.device' must be cpu here: torch {torch.__version__} finds no CUDA "
            f"device; got {name}"
        )
    if index and not ranks.alone():
        raise ValueError(
            f"recipe key 'model.device' must be cuda with {ranks.count()} ranks, each of which has "
            f"a GPU of its own; got {name}"
        )
    wanted = int(index or ("0" if ranks.alone() else os.environ.get("LOCAL_RANK", "0")))
    if wanted >= torch.cuda.device_count():
        raise ValueError(
            f"recipe key 'model.device' needs CUDA device {wanted}, and torch finds "
            f"{torch.cuda.device_count()}; got {name}"
        )
    torch.cuda.set_device(wanted)
