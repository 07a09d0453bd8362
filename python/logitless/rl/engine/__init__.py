"""Engines: how a policy is trained on the machine at hand. Only files here know of devices and
ranks."""

from __future__ import annotations

from logitless.rl.engine import ranks
from logitless.rl.engine.device import claim_device
from logitless.rl.engine.local import LocalEngine, check_policy
from logitless.rl.engine.parts import make_optimizer, parts_trained
from logitless.rl.engine.sharded import make_engine
from logitless.rl.engine.shards import spread, take
from logitless.rl.engine.shares import of_tokens, own_parts

__all__ = [
    "LocalEngine", "check_policy", "claim_device", "make_engine", "make_optimizer", "of_tokens",
    "own_parts", "parts_trained", "ranks", "spread", "take",
]  # fmt: skip
