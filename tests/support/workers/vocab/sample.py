"""linear_sample on two or three ranks: the token that one rank draws. See shards.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import logitless as ll
from logitless.backends import registry
from logitless.backends.cpu import CpuSampling
from tests.support import cases
from tests.support.tolerances import assert_bitwise_equal
from tests.support.workers.vocab.shards import (
    LAYOUTS,
    RANK,
    WORLD,
    V,
    compare,
    layouts,
    mine,
    part,
    refusal,
    run,
    same_on_all_ranks,
)

KEY: dict[str, int] = {"seed": 5, "step": 2}


def same_draw(h: Tensor, w: Tensor, ends: Any, exactly: bool = False, **options: Any) -> Tensor:
    """The token that one rank draws, which all ranks get."""
    key = {**KEY, "row_ids": torch.arange(len(h)) * 3}
    expected = ll.linear_sample(h, w, **key, **options)
    sample = ll.linear_sample(h, w[mine(ends)], **key, **part(ends, options))
    same_on_all_ranks(*sample)
    assert torch.equal(sample.token, expected.token)
    compare([sample.logp, sample.entropy], [expected.logp, expected.entropy], h.dtype)
    if exactly:
        for got, right in zip(sample, expected, strict=True):
            assert_bitwise_equal(got, right)
    return sample.token


def linear_sample() -> None:
    """The token that one rank draws, bit for bit where the product is exact."""
    n = 200
    generator = torch.Generator().manual_seed(3)
    exact = [torch.randint(-3, 4, (size, 8), generator=generator).float() for size in (n, V)]
    rough = [torch.randn(size, 8, generator=generator) for size in (n, V)]
    chains = {kind: cases.chain(kind, 1, n, V) for kind in ("plain", "all")}
    half = torch.where(torch.arange(V) % 2 == 0, 0.0, -float("inf"))
    chains["half impossible"] = {"bias": half}
    inside_a_block = [(0, 90), (90, 300), (300, V)] if WORLD == 3 else [(0, V - 1), (V - 1, V)]
    drawn_by = set()
    for ends in [*layouts(), inside_a_block]:
        for options in chains.values():
            for dtype in (torch.float32, torch.bfloat16):
                for h, w in ([x.to(dtype) for x in pair] for pair in (exact, rough)):
                    token = same_draw(h, w, ends, **options)
            drawn_by |= set((token // 2048).tolist())
    assert drawn_by == {0, 1, 2}
    h, w = (x.bfloat16() for x in rough)
    for ways in ({"batch_invariant": True}, {"logits_dtype": torch.float32},
                 {"memory_budget": 600_000}):  # fmt: skip
        for ends in layouts():
            token = same_draw(h, w, ends, **ways)
    key = {**KEY, "row_ids": torch.arange(n) * 3, **ways}
    assert (token != ll.linear_sample(h, w, **{**key, "step": 4}).token).any()


def rounded_alike() -> None:
    """Where blocks and shards end together every sum is that of one rank, but for their order."""
    h, w = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), torch.randn(V, 8)
    dist.broadcast(w, 0)
    ends = [(0, 2048), (2048, V), (V, V)][:WORLD]
    same_draw(h, w, ends, exactly=True)


# ---- the top of a distribution


TRUNCATIONS: list[dict[str, Any]] = [
    {"top_k": 1}, {"top_k": 40}, {"top_k": 200, "top_p": 0.7}, {"top_p": 0.6}, {"top_p": 0.999},
    {"top_k": 2000}, {"top_k": 3000, "top_p": 0.5},
]  # fmt: skip


def truncated() -> None:
    """Sets within the kept entries and beyond them, on peaked and flat rows; in `exact` most logits
    have equals on other ranks, among which the smaller token comes first."""
    n, generator = 40, torch.Generator().manual_seed(7)
    exact = [torch.randint(-3, 4, (size, 8), generator=generator).float() for size in (n, V)]
    rough = [torch.randn(size, 8, generator=generator) for size in (n, V)]
    rough[0][::3] *= 0.1
    half = torch.where(torch.arange(V) % 2 == 0, 0.0, -float("inf"))
    chains = [{}, cases.chain("all", 1, n, V), {"bias": half}]
    for ends in layouts():
        for chain in chains:
            for options in TRUNCATIONS:
                for dtype in (torch.float32, torch.bfloat16):
                    for h, w in (exact, rough):
                        same_draw(h.to(dtype), w.to(dtype), ends, **chain, **options)
        h, w = (x.bfloat16() for x in rough)
        for ways in ({"batch_invariant": True}, {"logits_dtype": torch.float32}):
            same_draw(h, w, ends, top_p=0.9, **ways)
        same_draw(h.double(), w.double(), ends, top_p=0.9)
        same_draw(h[:0], w, ends, top_k=3)
    no_truncation = {"top_k": V, "top_p": 1.0}
    key = {"seed": 5, "step": 2, "row_ids": torch.arange(n)}
    plain = ll.linear_sample(h, w[mine(ends)], **key, **part(ends, {}))
    sample = ll.linear_sample(h, w[mine(ends)], **key, **part(ends, no_truncation))
    assert_bitwise_equal(sample.token, plain.token)


def rows_that_need_all_logits() -> None:
    """As many at a time as there is room for: the same tokens, and the same number of times on all
    ranks, or they would wait for each other."""
    n, generator = 40, torch.Generator().manual_seed(8)
    h, w = (torch.randn(size, 8, generator=generator) for size in (n, V))
    bias = torch.randn(V, generator=generator)
    cpu, times = registry.get("cpu"), []

    class Counting(CpuSampling):
        """Rows that are drawn from all of their logits."""

        def draw_truncated(self, rows: Any, state: Any, drawn: Any, **options: Any) -> None:
            if "logits" in options:
                times.append(rows.n)
            super().draw_truncated(rows, state, drawn, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BACKENDS, "cpu", replace(cpu, sampling=Counting()))
        # Room for nine rows of one rank, fewer where they are sent.
        kept = cpu.machine("cpu").sampled_entries
        least = ll.plan(n, 8, V, backward=False, kept_entries=kept).total_bytes
        for ends in layouts():
            for budget in (None, least + 9 * 4 * V):
                times.clear()
                same_draw(h * 0.1, w, ends, top_p=0.9, bias=bias, memory_budget=budget)
                assert sum(times) == 2 * n
                same_on_all_ranks(torch.tensor(times))
            assert len(times) > 2


def ends_of_blocks() -> None:
    """Where blocks and shards end together, and products are exact, logp and entropy are those of
    one rank, bit for bit."""
    generator = torch.Generator().manual_seed(9)
    h, w = (torch.randint(-9, 10, (size, 8), generator=generator) / 8 for size in (5, V))
    ends = [(0, 2048), (2048, V), (V, V)][:WORLD]
    for options in TRUNCATIONS:
        same_draw(h, w, ends, exactly=True, **options)


def disagreement() -> None:
    h, w = torch.zeros(5, 8), torch.zeros(V, 8)
    ends = LAYOUTS["uneven"]
    key = {"seed": 1, "step": 1, "row_ids": torch.arange(5), **part(ends, {})}
    for options in ({"top_k": 3 + RANK}, {"top_p": 0.5 + RANK / 8}, {"top_k": RANK or None}):
        message = refusal(ValueError, lambda: ll.linear_sample(h, w[mine(ends)], **key, **options))  # noqa: B023
        assert f"{next(iter(options))} must be the same on every rank" in message
    poison = w[mine(ends)].clone()
    if RANK == WORLD - 1:
        poison[-1] = float("nan")
    message = refusal(ValueError, lambda: ll.linear_sample(h + 1, poison, **key, top_k=5))
    assert message == "linear_sample: row 0: its logits hold a NaN"


if __name__ == "__main__":
    run(
        linear_sample, rounded_alike, truncated, rows_that_need_all_logits, ends_of_blocks,
        disagreement,
    )  # fmt: skip
