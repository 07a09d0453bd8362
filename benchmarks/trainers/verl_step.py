"""A step of verl's actor in its FSDP2 engine: the old log-probs of all responses, then minibatches
with AdamW. Responses are given: verl generates them in the processes of an inference engine.

The ways are those of a micro-batch.
"""

from __future__ import annotations

import functools

from benchmarks.harness.case import Call
from benchmarks.trainers.sizes import Sizes
from benchmarks.trainers.verl_batch import LOSSES, NAME, WAYS, make_data, saved_engine

__all__ = ["NAME", "WAYS", "call"]

MINIBATCHES = 2


def call(way: str, sizes: Sizes, folder: str) -> Call:
    from verl.utils.tensordict_utils import chunk_tensordict

    from tests.plugins.verl.engines import actor_config, ppo_loss, prepared, scored

    made = saved_engine(way, sizes, folder)
    loss = functools.partial(ppo_loss, config=actor_config(LOSSES.get(way, "vanilla")))
    data = make_data(sizes)

    def run(_: None) -> float:
        data["old_log_probs"] = scored(made, data, entropy=False)["log_probs"]
        total = 0.0
        for part in chunk_tensordict(data, MINIBATCHES):
            batch = prepared(made, part, 1, calculate_entropy=False)
            total += float(sum(made.train_batch(batch, loss)["loss"]))
        return total

    return Call(run)
