"""One of two gloo ranks, each with half of a vocabulary: how often a call talks to the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import logitless as ll
from logitless.ops.head.cost import Strategy
from tests.support import cases
from tests.support.heads import V, batch, problem
from tests.support.plans import CHUNKS, force
from tests.support.shards import RANK, group, run

COLLECTIVES = (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all",
    "all_to_all_single", "barrier", "broadcast", "broadcast_object_list", "gather", "reduce",
    "reduce_scatter", "reduce_scatter_tensor", "scatter", "send", "recv", "batch_isend_irecv",
)  # fmt: skip


@contextmanager
def counted() -> Any:
    """Collective -> calls of it; "told" are the messages of ranks on what they are asked for."""
    calls: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        original = getattr(dist, name)

        def call(*args: Any, **options: Any) -> Any:
            tensors = [x for x in args if isinstance(x, Tensor)]
            told = any(x.dtype == torch.uint8 and x.numel() == 4096 for x in tensors)
            calls["told" if told else name] += 1
            return original(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(dist, name, counting(name))
        yield calls


def calls() -> dict[str, tuple[Callable[[], Tensor], int, int]]:
    """A public function -> its call, and the most collectives of its forward and its backward."""
    h, w, t = problem(1, 12, 16, V, torch.float32)
    data = batch(3)
    half = slice(0, V // 2) if RANK == 0 else slice(V // 2, V)
    shard: dict[str, Any] = {**group(), "vocab_start": half.start}
    z = cases.logits(1, 12, V, torch.float32)[:, half].requires_grad_()
    own, data["weight"] = (x.detach()[half].clone() for x in (w, data["weight"]))
    for leaf in (own, data["hidden"], data["weight"]):
        leaf.requires_grad_()
    key = {"seed": 1, "step": 1, "row_ids": torch.arange(12), **shard}

    def policy(way: Strategy | None, **options: Any) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            if way is not None:
                force(patch, way)
            return ll.linear_policy_loss(**data, spec=ll.presets["ppo"], **options, **shard).loss

    return {
        "token_stats": (lambda: ll.token_stats(z, t, **shard).logp.sum(), 2, 0),
        "linear_token_stats": (lambda: ll.linear_token_stats(h, own, t, **shard).logp.sum(), 2, 1),
        "linear_token_stats with tail_mass": (
            lambda: ll.linear_token_stats(h, own, t, tail_mass=1e-3, **shard).logp.sum(), 3, 1,
        ),
        "linear_sample": (lambda: ll.linear_sample(h.detach(), own.detach(), **key).logp, 3, 0),
        "linear_sample with top_k": (
            lambda: ll.linear_sample(h.detach(), own.detach(), **key, top_k=5).logp, 3, 0,
        ),
        "linear_policy_loss": (lambda: policy(None), 2, 1),
        "linear_policy_loss of whole sequences": (
            lambda: ll.linear_policy_loss(**data, spec=ll.presets["gspo"], **shard).loss, 2, 1,
        ),
        "linear_policy_loss with tail_mass": (lambda: policy(None, tail_mass=1e-3), 4, 0),
        # of each chunk: its states, and the sum of its d_hidden
        "linear_policy_loss in chunks": (lambda: policy(CHUNKS["whole"]), 3, 0),
    }  # fmt: skip


def one_exchange_a_call() -> None:
    for name, (call, forward, backward) in calls().items():
        # also where this shape has been agreed upon
        for _ in range(2):
            with counted() as seen:
                out = call()
            assert seen["told"] <= 1, (name, seen)
            assert 0 < seen.total() <= forward, (name, seen)
            with counted() as seen:
                if out.requires_grad:
                    out.backward()
            assert seen.total() <= backward, (name, seen)


if __name__ == "__main__":
    run(one_exchange_a_call)
