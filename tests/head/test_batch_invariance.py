"""batch_invariant: the bits of a row do not know what other rows there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import logitless as ll
from logitless.ops.head import batch_invariance as self_check
from logitless.ops.head.planner.cost import Strategy
from tests.support.plans import force, machine, took_one_pass
from tests.support.tolerances import assert_bitwise_equal

N, H, V, R = 40, 24, 4999, 16
COLUMNS = 2048
WAYS = {
    "keep": Strategy(2 * R, COLUMNS, V, 0, R),
    "mix": Strategy(R, COLUMNS, COLUMNS, 0, R),
    "recompute": Strategy(2 * R, COLUMNS, 0, 0, R),
    "one-pass": Strategy(2 * R, COLUMNS, 0, N, R),
    "one-pass in chunks": Strategy(R, COLUMNS, 0, R, R),
}


def problem(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "hidden": (3 * torch.randn(N, H, generator=g)).to(dtype),
        "targets": torch.randint(0, V, (N,), generator=g),
        "advantages": torch.randn(N, generator=g) * (torch.rand(N, generator=g) > 0.3),
        "old_logp": -5 * torch.rand(N, generator=g),
        "mask": torch.rand(N, generator=g) > 0.2,
    }


def weight(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(V, H, generator=torch.Generator().manual_seed(1)).to(dtype)


def results(data: dict[str, torch.Tensor], w: torch.Tensor, **options: Any) -> dict[str, Any]:
    """What belongs to each row. The normaliser is the batch's, whatever part of it this is."""
    h = data["hidden"].detach().requires_grad_()
    spec = ll.PolicyLossSpec(surrogate=ll.Unclipped(), entropy=ll.EntropyBonus(0.1))
    out = ll.linear_policy_loss(
        h, w.detach().requires_grad_(), *(data[k] for k in ("targets", "old_logp", "advantages")),
        data["mask"], spec, totals=ll.Totals(N, 0), batch_invariant=True, **options,
    )  # fmt: skip
    out.loss.backward()
    return {"logp": out.logp, "entropy": out.entropy, "d_hidden": h.grad, "loss": out.loss}


def rows_of(data: dict[str, torch.Tensor], index: Any) -> dict[str, torch.Tensor]:
    return {name: x[index] for name, x in data.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_other_rows_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    data, w, way = problem(dtype), weight(dtype), WAYS[name]
    machine(monkeypatch, fixed_rows=R)
    force(monkeypatch, way)
    whole = results(data, w)
    assert took_one_pass(ll.LinearPolicyLossOutput(whole["loss"], {}, 0, 0, {})) == ("one" in name)
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randperm(N, generator=generator)]
    parts += [torch.randperm(N, generator=generator)[:k] for k in (1, 2, R - 1, R, R + 1, 29)]
    parts += [torch.arange(0, R), torch.arange(R - 3, N), torch.arange(0, N, 3)]
    # padded: rows that the mask leaves out, with garbage in them
    for index in parts:
        part = rows_of(data, index)
        assert part["mask"].any() or len(index) < 3
        for number in (0, 5):
            padded = {
                k: torch.cat([x, x[:1].expand(number, *x.shape[1:])]) for k, x in part.items()
            }
            padded["mask"][len(index) :] = False
            padded["hidden"][len(index) :] = float("nan")
            force(
                monkeypatch,
                replace(way, chunk_rows=len(index) + number) if name == "one-pass" else way,
            )
            ours = results(padded, w)
            for key in ("logp", "entropy", "d_hidden"):
                assert_bitwise_equal(ours[key][: len(index)], whole[key][index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_every_way_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    data, w = problem(dtype), weight(dtype)
    machine(monkeypatch, fixed_rows=R)
    found = []
    for way in WAYS.values():
        force(monkeypatch, way)
        found.append(results(data, w))
    for other in found[1:]:
        for key in ("logp", "entropy", "d_hidden"):
            assert_bitwise_equal(other[key], found[0][key])


def test_as_planned() -> None:
    """No forcing: sizes above and below a tile, the planner's own choices."""
    g = torch.Generator().manual_seed(3)
    h, w = torch.randn(300, 64, generator=g), torch.randn(9000, 64, generator=g)
    t = torch.randint(0, 9000, (300,), generator=g)
    whole = ll.linear_token_stats(h, w, t, batch_invariant=True)
    for index in (slice(0, 1), slice(250, 300), torch.randperm(300, generator=g)):
        part = ll.linear_token_stats(h[index], w, t[index], batch_invariant=True)
        for ours, right in zip(part[:3], whole[:3], strict=True):
            assert_bitwise_equal(ours, right[index])


def test_a_machine_that_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product whose last row is summed in another order."""
    honest = torch.mm

    def partial(a: torch.Tensor, b: torch.Tensor, **options: Any) -> torch.Tensor:
        out = honest(a, b, **options)
        half = a.shape[1] // 2
        out[-1] = honest(a[-1:, half:], b[half:])[0] + honest(a[-1:, :half], b[:half])[0]
        return out

    h, w, t = torch.randn(4, 64), torch.randn(3001, 64), torch.arange(4)
    self_check._check.cache_clear()
    monkeypatch.setattr(torch, "mm", partial)
    with pytest.raises(RuntimeError, match="batch_invariant=True cannot be kept on cpu: in logits"):
        ll.linear_token_stats(h, w, t, batch_invariant=True)
    monkeypatch.undo()
    ll.linear_token_stats(h, w, t, batch_invariant=True)
    assert self_check._check.cache_info().currsize > 0


def test_where_it_is_not_offered() -> None:
    h, w, t = torch.randn(4, 8), torch.randn(50, 8), torch.arange(4)
    with pytest.raises(
        NotImplementedError, match="batch_invariant is not built for backend 'torch'"
    ):
        ll.linear_token_stats(h, w, t, batch_invariant=True, backend="torch")
    with pytest.raises(ValueError, match="batch_invariant must be left at its default"):
        ll.linear_token_stats(h.numpy(), w.numpy(), t.numpy(), batch_invariant=True)
