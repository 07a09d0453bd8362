"""A whole training with TRL: what the trainer logs and the weights it ends with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.plugins.trl.setting import quiet

# What depends on the clock.
TIMES = ("runtime", "per_second", "step_time", "total_flos", "epoch")


class Trained(NamedTuple):
    logs: list[dict[str, float]]
    parameters: dict[str, Tensor]


def trained(trainer: Any) -> Trained:
    torch.manual_seed(0)
    with quiet():
        trainer.train()
    logs = [
        {k: v for k, v in row.items() if not any(word in k for word in TIMES)}
        for row in trainer.state.log_history
    ]
    return Trained(logs, {k: p.detach().clone() for k, p in trainer.model.named_parameters()})


def largest(a: Trained, b: Trained) -> dict[str, float]:
    """Of each metric over the steps, and of the change of weights."""
    assert len(a.logs) == len(b.logs)
    found: dict[str, float] = {}
    for x, y in zip(a.logs, b.logs, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            if x[name] == x[name] or y[name] == y[name]:
                found[name] = max(found.get(name, 0.0), abs(x[name] - y[name]))
    found["weights"] = max(
        (p - b.parameters[k]).abs().max().item() for k, p in a.parameters.items()
    )
    return found
