"""Engines: how a policy is trained on the machine at hand. Only files here know of devices."""

from __future__ import annotations

from logitless.rl.engine.local import LocalEngine, check_policy, make_optimizer, parts_trained

__all__ = ["LocalEngine", "check_policy", "make_optimizer", "parts_trained"]
