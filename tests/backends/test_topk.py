"""The largest logits of each row as tiles stream by, against a plain sort."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitless import _core, reference
from logitless.backends import registry
from logitless.backends.row_kernels.rows import STATE, Rows
from logitless.backends.row_kernels.topk import TopK
from tests.support import cases
from tests.support.tolerances import assert_bitwise_equal

ISAS = _core.runtime.build_info()["isas"]


def captured(
    z: torch.Tensor,  # [N, V]
    *,
    keep: int = 64,
    tau: float = math.inf,
    width: int | None = None,
    threads: int = 2,
    **options: Any,
) -> list[tuple[list[int], list[float]]]:
    """(ids, values) of each row after tiles of `width` columns."""
    n, vocab = z.shape
    cpu = registry.get("cpu")
    rows = Rows(cpu, n, torch.zeros(n, dtype=torch.int64), threads=threads, **options)
    state = torch.empty(n, STATE, dtype=torch.float64)
    kept = TopK.empty(n, keep, margin=tau)
    width = width or vocab
    for start in range(0, vocab, width):
        tile = z[:, start : start + width].contiguous()
        rows.forward(tile, state, start=start, first=start == 0, topk=kept)
    assert cpu.topk is not None
    cpu.topk.finalize(rows, state, kept)
    found = []
    for i, count in enumerate(kept.count.tolist()):
        found.append((kept.ids[i, :count].tolist(), kept.values[i, :count].tolist()))
    return found


def assert_largest(z: torch.Tensor, keep: int, margin: float, found: Any) -> None:
    for row, (ids, y) in zip(cases.to_numpy(z), found, strict=True):
        right = reference.largest(row, keep, margin)
        assert ids == right.tolist()
        assert y == row[right].tolist()


def awkward(seed: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows that go wrong in different ways: ties, sorted both ways, late peaks, -inf."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(12, vocab, generator=generator) * 4
    z[1] = 1.5
    z[2] = z[2].sort().values
    z[3] = z[3].sort(descending=True).values
    z[4, -1] = 60.0
    z[5, 0] = 60.0
    z[6] = z[6].round()
    z[7, : vocab // 2] = -float("inf")
    z[8, :-1] = -float("inf")
    z[9] = torch.where(z[9] > 0, 2.0, 1.0)
    z[10] = -z[10].abs() * 1e3
    z[11] = torch.where(z[11] > 0, 0.0, -0.0)
    return z.to(dtype)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("tau", [math.inf, 7.5, 1e-3])
@pytest.mark.parametrize("keep", [1, 64, 200])
def test_against_a_plain_sort(dtype: torch.dtype, tau: float, keep: int) -> None:
    z = awkward(1, 6001, dtype)
    assert_largest(z, keep, tau, captured(z, keep=keep, tau=tau))


@pytest.mark.parametrize("shape", cases.ROW_SHAPES, ids=str)
def test_shapes(shape: tuple[int, int]) -> None:
    z = cases.logits(2, *shape, torch.float32)
    assert_largest(z, 64, 9.0, captured(z, tau=9.0))


@given(
    st.integers(0, 2**31),
    st.integers(1, 9000),
    st.integers(1, 90),
    st.sampled_from([0.5, 3.0, 20.0, math.inf]),
    st.sampled_from([2048, 4096, 6144]),
    st.integers(0, 6),
)
@settings(max_examples=60, deadline=None)
def test_any_tiling(
    seed: int, vocab: int, keep: int, tau: float, width: int, decimals: int
) -> None:
    """Ties included: rounding to few decimals makes many."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(3, vocab, generator=generator).mul(3).round(decimals=decimals)
    assert_largest(z, keep, tau, captured(z, keep=keep, tau=tau, width=width))


def test_few_long_rows_and_many_threads_agree() -> None:
    z = awkward(3, 9000, torch.float32)
    expected = captured(z, tau=12.0)
    for threads in (1, 3, 40):
        assert captured(z, tau=12.0, threads=threads) == expected


def test_scale_and_temperature_widen_the_margin() -> None:
    """z = scale y: an entry tau nats below the maximum is tau / scale below it in y."""
    z = cases.logits(4, 20, 5000, torch.float32)
    scale = torch.rand(20, dtype=torch.float64) + 0.5
    for i, found in enumerate(captured(z, tau=5.0, row_scale=scale)):
        assert_largest(z[i : i + 1], 64, 5.0 / float(scale[i]), [found])


def test_chain() -> None:
    """Ordered by what the softmax sees: bias added, capped."""
    z, bias = cases.logits(5, 10, 5000, torch.float32), torch.randn(5000)
    for ids, y in captured(z, keep=50, bias=bias, pre=0.5, softcap=3.0):
        assert len(ids) == 50
        assert y == sorted(y, reverse=True)
        assert max(y) <= 3.0
    capped = 3.0 * np.tanh(cases.to_numpy(z + bias) * 0.5 / 3.0)
    least = np.sort(capped, axis=1)[:, -50]
    for row, floor, (ids, y) in zip(
        capped, least, captured(z, keep=50, bias=bias, pre=0.5, softcap=3.0), strict=True
    ):
        np.testing.assert_allclose(row[ids], y, atol=2e-6)
        assert (row[ids] >= floor - 4e-6).all()


def test_masked_rows_are_empty() -> None:
    z, mask = cases.logits(6, 20, 3000, torch.float32), cases.mask(6, 20)
    z[~mask] = float("nan")
    found = captured(z, mask=mask)
    assert [len(ids) > 0 for ids, _ in found] == mask.tolist()


def test_every_instruction_set_keeps_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in cases.DTYPES:
        z = awkward(7, 5003, dtype)
        results = []
        for name in ISAS:
            monkeypatch.setenv("LOGITLESS_ISA", name)
            results.append(captured(z, tau=9.0, bias=None))
        assert all(result == results[0] for result in results)


def test_rows_that_more_entries_might_serve() -> None:
    """None that 64 serve, and none that 512 could not, were all as large as the 64th."""
    z, sizes = torch.full((4, 3000), -40.0), (40, 200, 500, 3000)
    for row, size in zip(z, sizes, strict=True):
        row[:size] = 0.0
    cpu = registry.get("cpu")
    rows = Rows(cpu, 4, torch.zeros(4, dtype=torch.int64))
    state, kept = torch.empty(4, STATE, dtype=torch.float64), TopK.empty(4, 64, margin=20.0)
    rows.forward(z, state, topk=kept)
    assert cpu.topk is not None
    cpu.topk.finalize(rows, state, kept)
    mass, entropy = torch.empty(2, 4, dtype=torch.float64)
    for most, right in (
        (64, [False] * 4), (128, [False] * 4), (256, [False, True, False, False]),
        (512, [False, True, True, False]),
    ):  # fmt: skip
        wider = torch.ones(4, dtype=torch.bool)
        again = TopK(
            kept.values.clone(), kept.ids.clone(), kept.threshold, kept.count.clone(), 20.0
        )
        cpu.topk.measure(
            rows, state, again, dropped_mass=mass, dropped_entropy=entropy, wider=wider, step=64,
            most=most, enough=1e-3, slack=1e-5,
        )  # fmt: skip
        assert wider.tolist() == right
        assert (mass <= 1e-3).tolist() == [True, False, False, False]


def test_statistics_are_what_they_are_without() -> None:
    z = cases.logits(8, 20, 5000, torch.float32)
    t = cases.targets(8, 20, 5000)
    states = []
    for kept in (None, TopK.empty(20, 64, margin=10.0)):
        rows, state = Rows(registry.get("cpu"), 20, t), torch.empty(20, STATE, dtype=torch.float64)
        rows.forward(z, state, topk=kept)
        states.append(state)
    assert_bitwise_equal(*states)


def test_wrong_arrays_are_named() -> None:
    rows = Rows(registry.get("cpu"), 3, torch.zeros(3, dtype=torch.int64))
    state = torch.empty(3, STATE, dtype=torch.float64)
    z = torch.zeros(3, 10)
    with pytest.raises(ValueError, match="topk must have 3 rows, got 4"):
        rows.forward(z, state, topk=TopK.empty(4, 8))
    with pytest.raises(ValueError, match="capacity must be even and from 2 to 2048, got 4096"):
        rows.forward(z, state, topk=TopK.empty(3, 2048))
    with pytest.raises(ValueError, match="margin must be > 0, got 0"):
        rows.forward(z, state, topk=TopK.empty(3, 8, margin=0.0))
    good = TopK.empty(3, 8)
    for name, wrong, problem in (
        ("values", good.values.t().contiguous().t(), "values must have contiguous rows"),
        (
            "ids",
            torch.empty(3, 20, dtype=torch.int32)[:, :16],
            "ids must have as many .* 16, got 20",
        ),
        ("ids", good.ids[:, :8], r"ids must be \[n, capacity\] = \[3, 16\]"),
        ("values", good.values.float(), "values must be float64, got float32"),
    ):
        with pytest.raises(ValueError, match=problem):
            rows.forward(z, state, topk=replace(good, **{name: wrong}))
