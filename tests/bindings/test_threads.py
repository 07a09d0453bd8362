"""The threads of the core's calls: how many there are, and that they change no result."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from logitless import _core
from tests.support.row_outputs import REALS

# More rows than one task holds, and no multiple of it.
N, V = 5000, 40


def rows(threads: int, n: int = N) -> Any:
    rng = np.random.default_rng(0)
    return _core.rows.Rows(
        n, targets=rng.integers(0, V, n), mask=rng.random(n) < 0.9,
        row_scale=rng.uniform(0.5, 2, n), threads=threads,
    )  # fmt: skip


def states(parts: int, n: int = N) -> Any:
    """[parts, n, 8] of consecutive ranges of columns."""
    logits = np.random.default_rng(1).normal(0, 3, (n, V))
    found = np.empty((parts, n, 8))
    for part, state in enumerate(found):
        # the tile counts from 0: only the first part can have the target
        tile = np.ascontiguousarray(logits[:, part * V // parts : (part + 1) * V // parts])
        rows(1, n).forward(tile, state, extras=True)
    return found


def outputs(n: int = N) -> dict[str, Any]:
    return {**{name: np.full(n, 7.0) for name in REALS}, "argmax": np.full(n, 7)}


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_merge_and_finalize_have_the_same_bits_on_threads(threads: int) -> None:
    parts, results = states(3), []
    for number in (1, threads):
        merged, out = np.empty((N, 8)), outputs()
        rows(number).merge(parts, merged)
        rows(number).finalize(parts[0], V, **out)
        results.append([merged, *out.values()])
    for alone, together in zip(*results, strict=True):
        np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_bad_row_is_named_on_threads(threads: int) -> None:
    state = np.ones((N, 8))
    bad = 901 + np.flatnonzero(np.random.default_rng(0).integers(0, 2, N - 901))
    state[bad, 1] = np.nan
    # all of them, and with the others masked the last alone
    for first, start in ((bad[0], 0), (bad[-1], bad[-1])):
        core = _core.rows.Rows(
            N, targets=np.zeros(N, np.int64), mask=np.arange(N) >= start, threads=threads
        )
        for _ in range(5):
            with pytest.raises(ValueError, match=f"^row {first}: its logits hold a NaN"):
                core.finalize(state, V, **outputs())


def call(n: int, **options: Any) -> None:
    core = _core.rows.Rows(n, targets=np.zeros(n, np.int64), **options)
    state, out = np.ones((n, 8)), [np.empty(n) for _ in range(3)]
    core.merge(np.ones((2, n, 8)), state)
    core.finalize(state, 5, **dict(zip(("logp", "entropy", "lse"), out, strict=True)))


@pytest.mark.parametrize(("n", "team"), [(1024, 1), (5000, 4)])
def test_many_rows_have_a_team_and_few_have_none(n: int, team: int) -> None:
    _core.runtime.widest_team()
    call(n, threads=4)
    assert _core.runtime.widest_team() == team
    assert _core.runtime.widest_team() == 0


def kernels() -> dict[str, Callable[[], object]]:
    """Every call of the core that has threads, on enough work and with no number of threads."""
    n, t = 3 << 18, _core.tokens
    x, ids, mask = np.linspace(-1, 1, n), np.arange(n), np.ones(n, bool)

    def half(*shape: int) -> Any:
        return np.zeros(shape, np.float16)

    def fresh() -> Any:
        return np.empty(n, np.int64)

    return {
        "merge and finalize": lambda: call(n),
        "exp": lambda: t.exp(x, np.empty(n)),
        "value_sums": lambda: t.value_sums(x, x, mask, np.empty(t.SUM_WORDS, np.int64)),
        "ordered_scores": lambda: t.ordered_scores(x, fresh()),
        "random_scores": lambda: t.random_scores(ids, 1, 2, fresh()),
        "radix_histogram": lambda: t.radix_histogram(ids, ids, 0, 0, 0, np.empty(256, np.int64)),
        "repeated_id": lambda: t.repeated_id(ids[::-1].copy(), mask),
        "members": lambda: t.members(ids, ids[:50], np.empty(n, bool)),
        "transpose": lambda: _core.rows.transpose(half(64, 4096), half(4096, 64)),
        "sparse_multiply": lambda: _core.topk.sparse_multiply(
            np.arange(n + 1), np.zeros(n, np.int32), np.ones(n, np.float32),
            names=np.arange(n, dtype=np.int32),
            dense=np.ones((1, 3), np.float32), out=np.empty((n, 3), np.float32),
        ),
        "forward": lambda: _core.rows.Rows(64, targets=np.zeros(64, np.int64)).forward(
            np.zeros((64, 9000), np.float32), np.empty((64, 8))
        ),
    }  # fmt: skip


def teams() -> dict[str, int]:
    def team(kernel: Callable[[], object]) -> int:
        _core.runtime.widest_team()
        kernel()
        return int(_core.runtime.widest_team())

    return {name: team(kernel) for name, kernel in kernels().items()}


def test_a_call_that_names_no_threads_has_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITLESS_NUM_THREADS", "3")
    assert teams() == dict.fromkeys(kernels(), 3)
    monkeypatch.delenv("LOGITLESS_NUM_THREADS")
    if sys.platform == "linux":
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            assert teams() == dict.fromkeys(kernels(), 1)
        finally:
            os.sched_setaffinity(0, allowed)
