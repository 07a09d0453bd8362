"""The state of an optimizer and its schedule as stored tensors and a text: nothing in it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from logitless.rl.engine import stored

NAME = "optimizer"
GROUPS, SCHEDULE = "param_groups", "schedule"


def save(optimizer: torch.optim.Optimizer, schedule: LRScheduler, folder: Path) -> None:
    """TypeError where a parameter's state holds more than tensors. Collective."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for place, values in state["state"].items():
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"optimizer state {name!r} must be a tensor, got {value!r}")
            tensors[f"{place}.{name}"] = value
    numbers = {GROUPS: state[GROUPS], SCHEDULE: schedule.state_dict()}
    stored.write(tensors, folder / NAME, json.dumps(numbers))


def load(optimizer: torch.optim.Optimizer, schedule: LRScheduler, folder: Path) -> None:
    """What `save` wrote, bit for bit; each rank has its share of what is spread."""
    found = stored.find(folder / NAME)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    tensors: dict[str, torch.Tensor] = {}
    for key, kind in found.tensors.items():
        like = parameters[int(key.partition(".")[0])]
        # a number stays one
        is_number = like.shape != kind.size
        tensors[key] = torch.empty(kind.size) if is_number else torch.empty_like(like.detach())
    stored.read(found, tensors, folder / NAME)
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        place, _, name = key.partition(".")
        state.setdefault(int(place), {})[name] = value
    numbers = json.loads(found.notes)
    groups = numbers[GROUPS]
    for group in groups:
        # JSON has no tuples
        group.update({k: tuple(v) for k, v in group.items() if k != "params" and type(v) is list})
    optimizer.load_state_dict({"state": state, GROUPS: groups})
    schedule.load_state_dict(numbers[SCHEDULE])
