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
from logitless.ops.head.planner.cost import Strategy
from tests.support import cases
from tests.support.heads import V, batch, problem
from tests.support.plans import CHUNKS, force
from tests.support.tolerances import assert_bitwise_equal
from tests.support.workers.vocab.shards import RANK, group, run

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
        # one more for the log-prob within the set, whose sums the ranks put together
        "linear_sample with top_k": (
            lambda: ll.linear_sample(h.detach(), own.detach(), **key, top_k=5).logp, 4, 0,
        ),
        "linear_policy_loss": (lambda: policy(None), 2, 1),
        "linear_policy_loss of whole sequences": (
            lambda: ll.linear_policy_loss(**data, spec=ll.presets["gspo"], **shard).loss, 2, 1,
        ),
        "linear_policy_loss with tail_mass": (lambda: policy(None, tail_mass=1e-3), 4, 0),
        # of each chunk: its states, and the sum of its d_hidden
        "linear_policy_loss in chunks": (lambda: policy(CHUNKS["whole"]), 3, 0),
    }  # fmt: skip


def one_exchange_in_the_first_call_of_a_kind() -> None:
    for name, (call, forward, backward) in calls().items():
        for checks, told in ((False, 1), (False, 0), (True, 1)):
            with checking(checks), counted() as seen:
                out = call()
            # one op, in chunks or not, is one kind
            assert seen["told"] <= told, (name, seen)
            assert seen["told"] == told or not checks, (name, seen)
            assert 0 < seen.total() <= forward, (name, seen)
            with counted() as seen:
                if out.requires_grad:
                    out.backward()
            assert seen.total() <= backward, (name, seen)


@contextmanager
def checking(on: bool) -> Any:
    """With or without LOGITLESS_CHECK, which has ranks agree in every call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGITLESS_CHECK", str(int(on)))
        yield


def a_shard_is_made_once() -> None:
    """The same numbers as with a group and a start; d_hidden may stay a share of the sum."""
    h, w, t = problem(1, 12, 16, V, torch.float32)
    ends = [(0, 700), (700, V)]
    own = w.detach()[slice(*ends[RANK])].clone().requires_grad_()
    sugar: dict[str, Any] = {**group(), "vocab_start": ends[RANK][0]}
    whole = ll.vocab_shard(dist.group.WORLD, own)
    share = ll.vocab_shard(dist.group.WORLD, own, reduce_hidden=False)
    named = ll.vocab_shard(dist.group.WORLD, own, vocab_start=ends[RANK][0])
    assert (whole.start, whole.stop) == ends[RANK] and whole.ranges == named.ranges == tuple(ends)
    assert whole.vocab == V

    def gradients(options: dict[str, Any]) -> tuple[Tensor, ...]:
        stats = ll.linear_token_stats(h, own, t, **options)
        both = torch.autograd.grad((stats.logp + stats.entropy).sum(), (h, own))
        return (stats.logp.detach(), *both)

    expected = gradients(sugar)
    # the kind of call is agreed on already, with and without the sum
    for checks in (True, False, False):
        with checking(checks):
            logp, d_hidden, d_weight = gradients({"vocab_group": share})
            for shard in (whole, named):
                for got, right in zip(gradients({"vocab_group": shard}), expected, strict=True):
                    assert_bitwise_equal(got, right)
        assert_bitwise_equal(logp, expected[0])
        assert_bitwise_equal(d_weight, expected[2])
        assert not torch.equal(d_hidden, expected[1])
        dist.all_reduce(d_hidden)
        torch.testing.assert_close(d_hidden, expected[1])
    with pytest.raises(ValueError, match="vocab_start must be left at 0 with a VocabShard"):
        ll.linear_token_stats(h, own, t, vocab_group=whole, vocab_start=1)
    with pytest.raises(ValueError, match="must cover a vocabulary from 0 on"):
        ll.vocab_shard(dist.group.WORLD, own, vocab_start=ends[RANK][0] + RANK)
    with pytest.raises(TypeError, match="group must be a torch"):
        ll.vocab_shard(None, own)
    for wrong in (None, 3, torch.zeros(4)):
        with pytest.raises(TypeError, match=r"weight must be a torch tensor \[V of this rank, H\]"):
            ll.vocab_shard(dist.group.WORLD, wrong)


if __name__ == "__main__":
    run(one_exchange_in_the_first_call_of_a_kind, a_shard_is_made_once)
