"""Rollouts: the answers that a policy samples, as data, and the sampler."""

from __future__ import annotations

from logitless.rl.rollout.check import check_cache
from logitless.rl.rollout.generator import sample
from logitless.rl.rollout.parts import Cut, in_parts, of_parts
from logitless.rl.rollout.remote import sample_remotely
from logitless.rl.rollout.rollout import Rollout, given_answers, join_rollouts
from logitless.rl.rollout.server import Server
from logitless.rl.rollout.states import check_shared, hidden_states
from logitless.rl.rollout.step_ends import token_ends

__all__ = [
    "Cut", "Rollout", "Server", "check_cache", "check_shared", "given_answers", "hidden_states",
    "in_parts", "join_rollouts", "of_parts", "sample", "sample_remotely", "token_ends",
]  # fmt: skip
