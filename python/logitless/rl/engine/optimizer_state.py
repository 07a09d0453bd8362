"""The state of an optimizer and its schedule as a safetensors file: nothing in it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LRScheduler

FILE = "optimizer.safetensors"
GROUPS, SCHEDULE = "param_groups", "schedule"
# One entry: safetensors writes several in a random order, and equal states are equal files.
NUMBERS = "numbers"


def save(optimizer: torch.optim.Optimizer, schedule: LRScheduler, folder: Path) -> None:
    """TypeError where a parameter's state holds more than tensors."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for place, values in state["state"].items():
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"optimizer state {name!r} must be a tensor, got {value!r}")
            tensors[f"{place}.{name}"] = value.contiguous()
    numbers = {GROUPS: state[GROUPS], SCHEDULE: schedule.state_dict()}
    save_file(tensors, folder / FILE, metadata={NUMBERS: json.dumps(numbers)})


def load(optimizer: torch.optim.Optimizer, schedule: LRScheduler, folder: Path) -> None:
    """What `save` wrote, bit for bit."""
    state: dict[int, dict[str, Any]] = {}
    with safe_open(folder / FILE, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118, no mapping
            place, _, name = key.partition(".")
            state.setdefault(int(place), {})[name] = file.get_tensor(key)
        numbers = json.loads(file.metadata()[NUMBERS])
    groups = numbers[GROUPS]
    for group in groups:
        # JSON has no tuples
        group.update({k: tuple(v) for k, v in group.items() if k != "params" and type(v) is list})
    optimizer.load_state_dict({"state": state, GROUPS: groups})
    schedule.load_state_dict(numbers[SCHEDULE])
