"""Engines: how a policy is trained on the machine at hand. Only files here know of devices."""

from __future__ import annotations

from logitless.rl.engine.local import LocalEngine, make_optimizer

__all__ = ["LocalEngine", "make_optimizer"]
