"""Updates: how rollouts and examples change the policy's weights, and its entropy with them."""

from __future__ import annotations

from logitless.rl.update.advantages import ADVANTAGES, advantage_name, advantages_of
from logitless.rl.update.controller import Follower, follower_of
from logitless.rl.update.entropy_probe import EntropyProbe
from logitless.rl.update.minibatch import Packed, batch_options, of_each_token, old_policy, pack
from logitless.rl.update.reference import with_reference
from logitless.rl.update.step_advantages import OF_STEPS, check_steps, step_advantages
from logitless.rl.update.update import Update, loss_backward, merge, update_policy
from logitless.rl.update.warmup import warm_up

__all__ = [
    "ADVANTAGES", "OF_STEPS", "EntropyProbe", "Follower", "Packed", "Update", "advantage_name",
    "advantages_of", "batch_options", "check_steps", "follower_of", "loss_backward", "merge",
    "of_each_token", "old_policy", "pack", "step_advantages", "update_policy", "warm_up",
    "with_reference",
]  # fmt: skip
