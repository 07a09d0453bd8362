"""Rollouts: the answers that a policy samples, as data, and the sampler."""

from __future__ import annotations

from logitless.rl.rollout.generator import sample
from logitless.rl.rollout.rollout import Rollout, hidden_states

__all__ = ["Rollout", "hidden_states", "sample"]
