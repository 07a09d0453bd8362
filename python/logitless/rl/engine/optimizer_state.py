"""The state of an optimizer and its schedule as a safetensors file: nothing in it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LRScheduler

import logitless as ll
from logitless.rl.engine.shards import cut_like

FILE = "optimizer.safetensors"
GROUPS, SCHEDULE = "param_groups", "schedule"
# One entry: safetensors writes several in a random order, and equal states are equal files.
NUMBERS = "numbers"


class State(NamedTuple):
    """What a file has of an optimizer and its schedule."""

    tensors: dict[str, torch.Tensor]
    numbers: str


def state_of(optimizer: torch.optim.Optimizer, schedule: LRScheduler) -> State:
    """Whole tensors. TypeError where a parameter's state holds more than tensors. Collective, where
    the parameters are spread."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for place, values in state["state"].items():
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"optimizer state {name!r} must be a tensor, got {value!r}")
            tensors[f"{place}.{name}"] = ll.gathered(value).contiguous()
    numbers = {GROUPS: state[GROUPS], SCHEDULE: schedule.state_dict()}
    return State(tensors, json.dumps(numbers))


def save(state: State, folder: Path) -> None:
    save_file(state.tensors, folder / FILE, metadata={NUMBERS: state.numbers})


def load(optimizer: torch.optim.Optimizer, schedule: LRScheduler, folder: Path) -> None:
    """What `save` wrote, bit for bit; each rank has its share of what is spread."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    with safe_open(folder / FILE, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118, no mapping
            place, _, name = key.partition(".")
            value = cut_like(file.get_tensor(key), parameters[int(place)])
            state.setdefault(int(place), {})[name] = value
        numbers = json.loads(file.metadata()[NUMBERS])
    groups = numbers[GROUPS]
    for group in groups:
        # JSON has no tuples
        group.update({k: tuple(v) for k, v in group.items() if k != "params" and type(v) is list})
    optimizer.load_state_dict({"state": state, GROUPS: groups})
    schedule.load_state_dict(numbers[SCHEDULE])
