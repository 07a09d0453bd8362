"""tail_mass on a device: the entries that the CPU keeps of the same logits, the rows that it
serves, its gradients, and the same bits every time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import reference
from logitless.backends import registry
from logitless.backends.row_kernels.rows import Rows
from logitless.backends.row_kernels.topk import TopK
from logitless.ops.head.planner.cost import Strategy
from logitless.ops.head.policy_op import SUPPORT_METRICS
from logitless.ops.sharding.topk import finalize
from tests.support import cases, sparse_cases
from tests.support.device.devices import Device
from tests.support.device.kept_entries import (
    CPU,
    awkward,
    captured,
    entries,
    kernels_of,
    rows_on,
    tiles,
)
from tests.support.plans import force
from tests.support.sparse_cases import ROUNDING, off, problem, upstream
from tests.support.tolerances import assert_bitwise_equal

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("dtype", "keep", "margin", "cuts"),
    [
        (F32, 64, math.inf, ()), (F32, 1, 7.5, (1, 2047)), (BF16, 64, 9.0, (1280, 2560)),
        (BF16, 200, math.inf, (2048,)), (F16, 1024, 1e3, (700,)), (F16, 64, 1e-3, (3000,)),
    ],
    ids=str,
)  # fmt: skip
def test_the_entries_of_the_cpu(
    device: Device, dtype: torch.dtype, keep: int, margin: float, cuts: Any
) -> None:
    """The same logits, whatever the tiles, which may begin anywhere in a row."""
    z = awkward(1, 3001, dtype)
    right = entries(captured(CPU, z, keep=keep, margin=margin)[2])
    for where in ((), cuts):
        *_, kept = captured(device, z, keep=keep, margin=margin, cuts=where)
        assert entries(kept) == right


def test_masks_temperatures_and_a_row_after_another(device: Device) -> None:
    z, mask = cases.logits(6, 9, 2500, F32), cases.mask(6, 9)
    z[~mask] = float("nan")
    options = {"mask": mask, "row_scale": torch.rand(9, dtype=torch.float64) + 0.5}
    right = entries(captured(CPU, z, keep=64, margin=5.0, **options)[2])
    *_, kept = captured(device, z, keep=64, margin=5.0, cuts=(1000,), **options)
    assert entries(kept) == right
    assert (kept.count.cpu() > 0).tolist() == mask.tolist()


@pytest.mark.parametrize("cuts", [(), (1280, 2560)], ids=str)
def test_rows_that_are_looked_through_once_more(device: Device, cuts: Any) -> None:
    """Room for more in the same memory, of which the forward had a part; other rows stay."""
    z, some = awkward(4, 3001, F32), torch.tensor([True, False] * 4)
    *_, few = captured(device, z, keep=64, margin=9.0)
    *_, more = captured(device, z, keep=200, margin=9.0)
    everything = TopK.empty(8, 200, margin=9.0, device=device.name)
    values, ids = everything.values[:, :128], everything.ids[:, :128]
    first = replace(everything, values=values, ids=ids)
    rows, state, _ = captured(device, z, keep=64, margin=9.0, cuts=cuts, into=first)
    again = replace(rows, mask=some.to(device.name))
    for start, tile in tiles(device, z, cuts):
        kernels_of(device).recapture(again, tile, state, everything, start=start, first=start == 0)
    kernels_of(device).finalize(again, state, everything)
    for i, row in enumerate(entries(everything)):
        assert row == entries(more if some[i] else few)[i]


def test_entries_of_a_chain_are_ordered_by_what_the_softmax_sees(device: Device) -> None:
    z, bias = cases.logits(5, 6, 2500, F32), torch.randn(2500)
    options = {"bias": bias, "pre": 0.5, "softcap": 3.0}
    capped = 3.0 * np.tanh(cases.to_numpy(z + bias) * 0.5 / 3.0)
    *_, kept = captured(device, z, keep=50, **options)
    for row, (ids, y) in zip(capped, entries(kept), strict=True):
        assert len(ids) == 50
        assert y == sorted(y, reverse=True)
        np.testing.assert_allclose(row[ids], y, atol=2e-6)
        assert (row[ids] >= np.sort(row)[-50] - 4e-6).all()


def measured(device: Device, rows: Rows, state: torch.Tensor, kept: TopK, step: int) -> Any:
    dropped = torch.empty(2, rows.n, dtype=torch.float64, device=device.name)
    kernels_of(device).measure(
        rows, state, kept, dropped_mass=dropped[0], dropped_entropy=dropped[1],
        wider=torch.zeros(rows.n, dtype=torch.bool, device=device.name), step=step,
        most=kept.values.shape[1] // 2, enough=1e-2, slack=1e-4,
    )  # fmt: skip
    return dropped


@pytest.mark.parametrize("kind", sparse_cases.KINDS)
def test_the_same_rows_are_served(device: Device, kind: str) -> None:
    """From the same states and entries: as many kept, the same mass dropped, the same gradients,
    and an entry that is a target kept once."""
    z, t = sparse_cases.rows(kind, 2, 10, 1301)
    z = z.float()
    options = {
        "targets": t.contiguous(),
        "softcap": 30.0,
        "scale": 1.3,
        "keep": 128,
        "margin": 18.0,
    }
    rows, state, kept = captured(CPU, z, **options)
    of_state, *arrays = device.put(state, kept.values, kept.ids, kept.threshold, kept.count)
    there, own = (
        rows_on(device, 10, targets=t.contiguous(), softcap=30.0, scale=1.3),
        TopK(*arrays, 18.0),
    )
    right, ours = measured(CPU, rows, state, kept, 64), measured(device, there, of_state, own, 64)
    assert own.count.tolist() == kept.count.tolist()
    assert entries(own) == entries(kept)
    torch.testing.assert_close(ours.cpu(), right, rtol=1e-12, atol=1e-14)
    index = torch.tensor([7, 0, 3])
    g = {f"g_{name}": torch.randn(10, dtype=torch.float64) for name in ("logp", "entropy", "lse")}
    found = []
    sides: tuple[tuple[Any, ...], ...]
    sides = ((CPU, rows, state, kept), (device, there, of_state, own))
    for where, *of in sides:
        put = {name: x.to(where.name) for name, x in {**g, "index": index}.items()}
        mine: Any = of[-1]
        counts = mine.count[put["index"]]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        columns = counts.new_empty(int(offsets[-1]), dtype=torch.int32)
        values = torch.empty_like(columns, dtype=F32)
        kernels_of(where).gradient(*of, offsets=offsets, columns=columns, values=values, **put)
        found.append((columns.cpu(), values.cpu()))
    assert found[0][0].equal(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=3e-7, atol=1e-12)


def test_sums_of_sparse_rows(device: Device) -> None:
    """Added to those of the rows that are named, one of them with nothing."""
    generator = torch.Generator().manual_seed(3)
    offsets = torch.tensor([0, 700, 700, 703])
    columns = torch.randint(0, 9, (703,), generator=generator, dtype=torch.int32)
    values, names = torch.randn(703, generator=generator), torch.tensor([4, 2, 0])
    found = []
    for where in (device, device, CPU):
        csr = [x.to(where.name) for x in (offsets, columns, values)]
        out = torch.ones(5, device=where.name)
        kernels_of(where).add_row_sums(*csr, names=names.int().to(where.name), out=out)
        found.append(out.cpu())
    assert_bitwise_equal(found[0], found[1])
    assert (found[0][1:4] == 1).all()
    torch.testing.assert_close(found[0], found[2], rtol=2e-6, atol=1e-4)


def of_logits(
    device: Device, z: torch.Tensor, t: torch.Tensor, g: Any, **options: Any
) -> tuple[ll.TokenStats, torch.Tensor]:
    """Statistics and d(logits) of a head whose product is exact: hidden is the identity."""
    weight = z.t().contiguous().to(device.name).requires_grad_()
    hidden = torch.eye(len(z), dtype=z.dtype, device=device.name)
    extras = ("dropped_mass", "dropped_entropy")
    stats = ll.linear_token_stats(
        hidden, weight, t.to(device.name), extras=extras, backend=device.backend, **options
    )
    g = (torch.as_tensor(x).to(device.name) for x in g)
    terms = zip((stats.logp, stats.entropy, stats.lse), g, strict=True)
    loss = torch.stack([(value.double() * x).sum() for value, x in terms]).sum()
    return stats, torch.autograd.grad(loss, weight)[0].t().cpu()


@pytest.mark.parametrize("kind", sparse_cases.KINDS)
def test_against_the_oracle(device: Device, kind: str) -> None:
    """The same rows served, the same entries kept, the same gradient."""
    tail_mass, entries_kept = 1e-2, 64
    z, t = sparse_cases.rows(kind, 1, 8, device.quarter(1301))
    z, slack = z.float(), ROUNDING[F32]
    for g in sparse_cases.signs(2, len(z))[4 : 6 if device.interpreted else 8]:
        truth = reference.support_backward(
            z.numpy(), t.numpy(), tail_mass=tail_mass, keep=entries_kept, **upstream(g)
        )
        stats, ours = of_logits(device, z, t, g, tail_mass=tail_mass, tail_entries=entries_kept)
        mass, entropy = (cases.to_numpy(x.cpu()) for x in stats.extras.values())
        edge = np.abs(truth["mass"] - tail_mass) <= slack
        edge |= np.isinf(truth["entropy"]) != np.isinf(entropy)
        assert kind in ("plateau", "all equal", "edge of the sign") or not edge.any()
        np.testing.assert_allclose(mass[~edge], truth["mass"][~edge], atol=slack)
        known = np.isfinite(truth["entropy"]) & ~edge
        np.testing.assert_allclose(entropy[known], truth["entropy"][known], atol=20 * slack)
        size = sum(np.abs(x) for x in g)[:, None]
        error = np.abs(cases.to_numpy(ours) - truth["dlogits"])
        assert (error <= 20 * slack * size)[~edge].all()
        for i in np.flatnonzero(truth["served"] & ~edge):
            assert set(np.flatnonzero(cases.to_numpy(ours[i]))) <= set(truth["kept"][i])


def gradients(
    device: Device, leaves: Any, t: torch.Tensor, g: Any, **options: Any
) -> tuple[ll.TokenStats, list[torch.Tensor]]:
    there = {k: v.to(device.name) if torch.is_tensor(v) else v for k, v in options.items()}
    own = [x.detach().to(device.name, copy=True).requires_grad_() for x in leaves]
    if len(own) > 2:
        there["bias"] = own[2]
    stats = ll.linear_token_stats(*own[:2], t.to(device.name), backend=device.backend, **there)
    g = [x.to(device.name) for x in g]
    loss = (stats.logp * g[0] + stats.entropy * g[1] + stats.lse * g[2]).sum()
    return stats, [x.cpu() for x in torch.autograd.grad(loss, own)]


@pytest.mark.parametrize("kind", ["zipf", "gaussian"])
def test_rows_keep_the_same_entries_where_logits_stay(
    device: Device, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab = device.quarter(2600)
    z, t = sparse_cases.rows(kind, 9, 12, vocab)
    g, found = tuple(x.float().numpy() for x in cases.upstream(9, 12)), []
    for kept in (0, vocab):
        force(monkeypatch, Strategy(7, 2048, kept))
        stats, ours = of_logits(device, z.float(), t, g, tail_mass=1e-2)
        mass, entropy = (x.cpu() for x in stats.extras.values())
        served = (mass <= 1e-2) & entropy.isfinite()
        found.append((mass, entropy, ours.where(served[:, None], 0.0)))
    assert served.any() and not served.all()
    for a, b in zip(*found, strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.parametrize("kind", ["plain", "all"])
@pytest.mark.parametrize("dtypes", [(F32, None), (BF16, None), (F16, None), (BF16, F32)], ids=str)
def test_every_option_of_the_head(
    device: Device, dtypes: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tiles, masked rows, rows without a gradient, dense ones among served ones."""
    dtype, logits_dtype = dtypes
    # a softcap flattens these rows
    n, vocab, tail = 19, 2100, 1e-2 if kind == "plain" else 0.2
    h, w, t = problem(3, n, 24, vocab, dtype)
    g, mask, options = cases.upstream(3, n), cases.mask(3, n), cases.chain(kind, 3, n, vocab)
    leaves = [h, w, *([options["bias"]] if "bias" in options else [])]
    options = {**options, "mask": mask, "tail_mass": tail, "tail_entries": 128}
    options["extras"] = ("dropped_mass", "dropped_entropy")
    if logits_dtype is not None:
        options["logits_dtype"] = logits_dtype
    force(monkeypatch, Strategy(7, 2048, 0))
    plain, right = gradients(CPU, leaves, t, g, **options)
    stats, ours = gradients(device, leaves, t, g, **options)
    # the interpreter has one thread
    again = ours if device.interpreted else gradients(device, leaves, t, g, **options)[1]
    served = plain.extras["dropped_mass"] <= tail
    assert served[mask].any() and not served[mask].all()
    far = (plain.extras["dropped_mass"] - tail).abs() > 1e-4
    # d_bias of dense rows sums d(logits) that Triton's interpreter cut off
    cut = device.interpreted and dtypes == (BF16, None)
    assert (stats.extras["dropped_mass"].cpu() <= tail)[far].equal(served[far])
    for a, b, c in zip(ours, right, again, strict=True):
        assert_bitwise_equal(a, c)
        assert off(a, b) <= {BF16: 2e-2, F16: 3e-3, F32: 1e-3 if cut else 1e-5}[a.dtype]
    assert (ours[0][~mask] == 0).all()


def test_an_adapter_has_its_gradients(device: Device) -> None:
    vocab = device.quarter(2100)
    h, w, t = problem(4, 12, 16, vocab, F32)
    a, b = torch.randn(3, 16) * 0.1, torch.randn(vocab, 3) * 0.1
    found = []
    for where in (CPU, device):
        leaves = [x.detach().to(where.name, copy=True).requires_grad_() for x in (h, w, a, b)]
        stats = ll.linear_token_stats(
            *leaves[:2], t.to(where.name), adapter=(*leaves[2:], 0.5), tail_mass=1e-2,
            backend=where.backend,
        )  # fmt: skip
        found.append([x.cpu() for x in torch.autograd.grad(stats.logp.sum(), leaves)])
    for x, y in zip(*found, strict=True):
        assert off(x, y) <= 1e-5


@pytest.mark.parametrize("name", ["ppo", "kl_cov"])
def test_policy_loss(device: Device, name: str) -> None:
    """Loss, metrics of what is dropped, and gradients are the CPU's."""
    h, w, t = problem(5, 24, 16, device.quarter(2500), F32)
    generator = torch.Generator().manual_seed(5)
    advantages = torch.randn(24, generator=generator)
    with torch.no_grad():
        old = ll.linear_token_stats(h, w, t).logp
    old = old + 0.1 * torch.randn(24, generator=generator)
    mask = torch.rand(24, generator=generator) > 0.2
    spec = replace(ll.presets[name], entropy=ll.EntropyBonus(0.01))

    def run(where: Device) -> tuple[Any, list[torch.Tensor]]:
        leaves = [x.detach().to(where.name, copy=True).requires_grad_() for x in (h, w)]
        data = [x.to(where.name) for x in (t, old, advantages, mask)]
        out = ll.linear_policy_loss(*leaves, *data, spec, tail_mass=1e-2, backend=where.backend)
        return out, [x.cpu() for x in torch.autograd.grad(out.loss, leaves)]

    (out, ours), (plain, right) = run(device), run(CPU)
    torch.testing.assert_close(out.loss.detach().cpu(), plain.loss.detach(), rtol=1e-5, atol=1e-5)
    metrics = {key: float(plain.metrics[key]) for key in SUPPORT_METRICS}
    assert 0.2 < metrics["actor/support_rows"] < 1
    assert {key: float(out.metrics[key]) for key in SUPPORT_METRICS} == pytest.approx(
        metrics, rel=1e-3, abs=1e-6
    )
    for x, y in zip(ours, right, strict=True):
        assert off(x, y) <= 1e-5


def test_no_row_has_a_gradient(device: Device) -> None:
    h, w, t = problem(6, 10, 16, 2100, F32)
    _, nothing = gradients(device, (h, w), t, torch.zeros(3, 10), tail_mass=1e-3)
    assert all((x == 0).all() for x in nothing)
    mask = torch.zeros(10, dtype=torch.bool)
    _, nothing = gradients(device, (h, w), t, torch.ones(3, 10), tail_mass=1e-3, mask=mask)
    assert all((x == 0).all() for x in nothing)


def test_the_host_waits_once(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """For three numbers: rows are then selected by numbers that are known."""
    h, w, t = problem(7, 16, 16, 2100, F32)
    numbers, backend = [], registry.get(device.backend)

    def select(self: Any, mask: torch.Tensor, number: int | None = None) -> torch.Tensor:
        numbers.append(number)
        return before(self, mask, number)

    before = type(backend).select
    monkeypatch.setattr(type(backend), "select", select)
    gradients(device, (h, w), t, cases.upstream(7, 16), tail_mass=1e-2, tail_entries=64)
    assert len(numbers) == 2 and None not in numbers
    assert min(numbers) > 0


class Shards:
    """Ranks of which this process is each in turn. What they send is gathered first."""

    group = "ranks"

    def __init__(self, start: int, sent: list[torch.Tensor] | None = None) -> None:
        self.start, self.sent = start, sent

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        self.mine = mine
        return torch.stack([mine] if self.sent is None else self.sent)


def test_entries_of_a_vocabulary_in_parts(device: Device) -> None:
    """Those of one rank that has all columns; -inf where a rank keeps fewer."""
    z, half = awkward(8, 2600, BF16), 1200
    _, _, whole = captured(device, z, keep=64, margin=6.0)
    starts = (0, half)

    def parts() -> list[Any]:
        cut = (z[:, :half], z[:, half:])
        return [captured(device, part, keep=64, margin=6.0) for part in cut]

    found = parts()
    rows, state, _ = found[0]
    merged = torch.empty_like(state)
    rows.merge(torch.stack([part[1] for part in found]), merged)
    sent = []
    for (_, _, kept), start in zip(found, starts, strict=True):
        shard: Any = Shards(start)
        finalize(rows, merged, kept, shard, BF16)
        sent.append(shard.mine)
    for (_, _, kept), start in zip(parts(), starts, strict=True):
        everyone: Any = Shards(start, sent)
        finalize(rows, merged, kept, everyone, BF16)
        assert entries(kept) == entries(whole)
