"""Engines: how a policy is trained on the machine at hand. Only files here know of devices and
ranks."""

from __future__ import annotations

from logitless.rl.engine import ranks
from logitless.rl.engine.device import claim_device
from logitless.rl.engine.local import LocalEngine, check_policy, make_optimizer, parts_trained
from logitless.rl.engine.shares import of_tokens, own_sequences

__all__ = [
    "LocalEngine", "check_policy", "claim_device", "make_optimizer", "of_tokens", "own_sequences",
    "parts_trained", "ranks",
]  # fmt: skip
