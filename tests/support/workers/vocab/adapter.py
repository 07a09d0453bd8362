"""One of two or three gloo ranks: an adapter on a head whose vocabulary is in parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import logitless as ll
from tests.support import cases
from tests.support.heads import problem
from tests.support.tolerances import assert_gradients
from tests.support.workers.vocab.shards import (
    LAYOUTS,
    RANK,
    H,
    N,
    V,
    compare,
    group,
    mine,
    refusal,
    run,
    same_on_all_ranks,
    values,
    weighted,
)

R = 3


def given(ends: list[tuple[int, int]] | None) -> list[Tensor]:
    """hidden, weight, A and B: of this rank, or all."""
    h, w, _ = problem(1, N, H, V, torch.float32)
    g = torch.Generator().manual_seed(2)
    A, B = torch.randn(R, H, generator=g), torch.randn(V, R, generator=g) / 8
    rows = slice(None) if ends is None else mine(ends)
    return [x.detach().clone().requires_grad_() for x in (h, w[rows], A, B[rows])]


def losses(leaves: list[Tensor], **options: Any) -> tuple[ll.TokenStats, Tensor]:
    h, w, A, B = leaves
    t = problem(1, N, H, V, torch.float32)[2]
    data = {"old_logp": torch.full((N,), -8.0), "advantages": torch.linspace(-1, 1, N)}
    options |= {"mask": cases.mask(1, N), "adapter": (A, B, 0.5)}
    stats = ll.linear_token_stats(h, w, t, **options)
    loss = ll.linear_policy_loss(h, w, t, **data, spec=ll.presets["ppo"], **options).loss
    return stats, weighted(stats, cases.upstream(1, N)) + loss


def everything() -> None:
    for ends in LAYOUTS.values():
        for options in ({}, {"tail_mass": 1e-3}):
            whole, own = given(None), given(ends)
            stats, loss = losses(whole, **options)
            ours, total = losses(own, **group(), vocab_start=ends[RANK][0], **options)
            same_on_all_ranks(*values(ours))
            compare(values(ours), values(stats), torch.float32)
            right = torch.autograd.grad(loss, whole)
            found = torch.autograd.grad(total, own)
            same_on_all_ranks(found[0], found[2])
            rows = mine(ends)
            truth = (right[0], right[1][rows], right[2], right[3][rows])
            for a, b in zip(found, truth, strict=True):
                assert_gradients(a, b, torch.float32, scale=100 if not options else 1e3)


def refused() -> None:
    ends = LAYOUTS["even"]
    h, w, A, B = given(ends)
    t = torch.zeros(N, dtype=torch.int64)
    wrong = (A, B[:, 1:] if RANK == 0 else B, 0.5)
    kind = ValueError if RANK == 0 else RuntimeError
    options = {**group(), "vocab_start": ends[RANK][0]}
    message = refusal(kind, lambda: ll.linear_token_stats(h, w, t, adapter=wrong, **options))
    assert "adapter's B must be [V, r]" in message
    share = ll.vocab_shard(options["vocab_group"], w, reduce_hidden=False)
    call = lambda: ll.linear_token_stats(h, w, t, adapter=(A, B, 0.5), vocab_group=share)  # noqa: E731
    assert "reduce_hidden=False is not built" in refusal(NotImplementedError, call)


if __name__ == "__main__":
    run(everything, refused)
