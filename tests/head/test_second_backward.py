"""Backwards after the first: the rule of docs/head.md, "With other tools", for every op.

With retain_graph=True a backward gives the same gradients again, or raises where it writes over
what its forward has saved. Second derivatives raise, except where plain torch computes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import logitless as ll
from tests.support.plans import APART, CHUNKS, force
from tests.support.tolerances import assert_bitwise_equal

N, H, V = 12, 8, 2500
TARGETS, MASK = torch.arange(N) * 7, torch.arange(N) % 5 != 4
SPEC = dataclasses.replace(ll.presets["ppo"], entropy=ll.EntropyBonus(0.01))
G = torch.linspace(-1, 2, N)


def of_stats(stats: ll.TokenStats) -> torch.Tensor:
    return ((stats.logp + stats.lse).reshape(-1) * G).sum() - stats.entropy.sum()


def rows(**options: Any) -> Any:
    def make(logits: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        options_here = {"bias": bias, "mask": MASK, **options}
        return of_stats(ll.token_stats(logits * 1.0, TARGETS, **options_here))

    return make, (N, V), (V,)


def padded_rows(**options: Any) -> Any:
    def make(logits: torch.Tensor) -> torch.Tensor:
        return of_stats(ll.token_stats((logits + 1)[:, :-1], TARGETS.view(3, 4), **options))

    return make, (3, 5, V)


def head(**options: Any) -> Any:
    def make(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        stats = ll.linear_token_stats(hidden, weight, TARGETS, bias=bias, mask=MASK, **options)
        return of_stats(stats)

    return make, (N, H), (V, H), (V,)


def policy(**options: Any) -> Any:
    def make(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        old = torch.full((N,), -7.0)
        return ll.linear_policy_loss(hidden, weight, TARGETS, old, G, MASK, SPEC, **options).loss

    return make, (N, H), (V, H)


def loss(spec: ll.PolicyLossSpec) -> Any:
    def make(logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        old = logp.detach() + 0.1 * G
        cu_seqlens = torch.tensor([0, 5, N], dtype=torch.int32)
        return ll.policy_loss(
            logp, old, G, MASK, spec, entropy=entropy, cu_seqlens=cu_seqlens
        ).loss + 0 * entropy.sum()  # fmt: skip

    return make, (N,), (N,)


# name -> (loss of some leaves, their shapes)
AGAIN = {
    "token_stats": rows(),
    "token_stats, chain": rows(softcap=3.0, temperature=torch.full((N,), 0.7), extras=("argmax",)),
    "token_stats, [B, T]": padded_rows(),
    "token_stats, torch": rows(backend="torch", inplace_backward=True),
    "linear_token_stats, tail_mass": head(tail_mass=0.5),
    "linear_token_stats, tail_mass, dense": head(tail_mass=1e-5),
    "linear_token_stats, tail_mass, kept": head(tail_mass=1e-5),
    "linear_token_stats, torch": head(backend="torch"),
    "linear_policy_loss, torch": policy(backend="torch"),
    "policy_loss": loss(SPEC),
    "policy_loss, sequences": loss(ll.presets["gspo"]),
}
ONCE = {
    "token_stats, in place": rows(inplace_backward=True),
    "token_stats, [B, T], in place": padded_rows(inplace_backward=True),
    "linear_token_stats, kept": head(memory_budget="1GiB"),
    "linear_token_stats, made again": head(memory_budget=300_000),
    "linear_token_stats, batch_invariant": head(batch_invariant=True),
    "linear_policy_loss, one-pass": policy(),
    "linear_policy_loss, apart": policy(),
    "linear_policy_loss, tail_mass": policy(tail_mass=0.5),
    "linear_policy_loss, tail_mass, dense": policy(tail_mass=1e-5),
}
TWICE_DIFFERENTIABLE = ("token_stats, torch", "linear_token_stats, torch")


def make_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, Any]:
    if name == "linear_policy_loss, one-pass":
        force(monkeypatch, CHUNKS["whole"])
    elif name in ("linear_policy_loss, apart", "linear_token_stats, tail_mass, kept"):
        force(monkeypatch, APART)
    make, *shapes = (AGAIN | ONCE)[name]
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    return make(*leaves), leaves


@pytest.mark.parametrize("name", AGAIN)
def test_the_same_gradients_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    total, leaves = make_loss(name, monkeypatch)
    first = [g.clone() for g in torch.autograd.grad(total, leaves, retain_graph=True)]
    assert all(bool(g.isfinite().all()) for g in first)
    assert bool(first[0].any())
    for keep in (True, False):
        again = torch.autograd.grad(total, leaves, retain_graph=keep)
        for ours, right in zip(again, first, strict=True):
            assert_bitwise_equal(ours, right)
            # what is handed out is the caller's
            ours.zero_()
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("name", ONCE)
def test_only_once_where_memory_is_written_over(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    total, leaves = make_loss(name, monkeypatch)
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    before = [g.clone() for g in first]
    op = name.partition(",")[0]
    inner = "linear_token_stats" if name == "linear_policy_loss, apart" else op
    with pytest.raises(RuntimeError, match=f"{inner}: backward through the same forward a second"):
        torch.autograd.grad(total, leaves)
    for ours, right in zip(first, before, strict=True):
        assert_bitwise_equal(ours, right)


@pytest.mark.parametrize("name", AGAIN | ONCE)
def test_second_derivatives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    total, leaves = make_loss(name, monkeypatch)
    if name in TWICE_DIFFERENTIABLE:
        first = torch.autograd.grad(total, leaves, create_graph=True)
        assert torch.autograd.grad(first[0].square().sum(), leaves[0])[0].any()
        return
    with pytest.raises(RuntimeError, match=r"double backward \(create_graph=True\)"):
        torch.autograd.grad(total, leaves, create_graph=True)
    # nothing was spent on it
    torch.autograd.grad(total, leaves)
