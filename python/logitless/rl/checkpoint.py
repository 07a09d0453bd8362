"""Atomic checkpoints: a folder is written under another name and renamed, so what exists is whole.

Nothing random is saved: every draw of the trainer is a function of (seed, step), so model,
optimizer and step are all there is to continue bit for bit.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from logitless.rl.model import Policy, load_policy

PREFIX = "checkpoint-"


def save(folder: Path, step: int, policy: Policy, optimizer: torch.optim.Optimizer | None) -> Path:
    """Writes folder/checkpoint-STEP, which AutoModelForCausalLM reads, and removes older ones."""
    final = folder / f"{PREFIX}{step:06d}"
    part = folder / f"{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    policy.save(part)
    if optimizer is not None:
        torch.save(optimizer.state_dict(), part / "optimizer.pt")
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    for other in folder.glob(f"{PREFIX}*"):
        if other != final:
            shutil.rmtree(other)
    return final


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    whole = sorted(p for p in folder.glob(f"{PREFIX}*") if not p.name.endswith(".part"))
    return whole[-1] if whole else None


def clear(folder: Path) -> None:
    for old in folder.glob(f"{PREFIX}*"):
        shutil.rmtree(old)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def load_weights(checkpoint: Path, policy: Policy) -> None:
    """Copies a checkpoint's weights into `policy`, bit for bit."""
    policy.model.load_state_dict(load_policy(checkpoint).model.state_dict())


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
