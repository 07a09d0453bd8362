"""The threads of the core's calls: how many there are, and that they change no result."""

from __future__ import annotations

import os
import subprocess
import sys
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


# In OpenMP's pool, which torch brings, started threads stay and can be counted.
COUNT = """
import os, torch, numpy as np
from logitless import _core
tasks = lambda: len(os.listdir("/proc/self/task"))
def call(n, **options):
    rows = _core.rows.Rows(n, targets=np.zeros(n, np.int64), **options)
    state, out = np.ones((n, 8)), [np.empty(n) for _ in range(3)]
    rows.merge(np.ones((2, n, 8)), state)
    rows.finalize(state, 5, **dict(zip(("logp", "entropy", "lse"), out)))
before = tasks()
"""


def run(script: str, **environment: str) -> list[int]:
    pytest.importorskip("torch")
    if sys.platform != "linux":
        pytest.skip("counts threads in /proc")
    done = subprocess.run(
        [sys.executable, "-c", COUNT + script],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_many_rows_start_threads_and_few_start_none() -> None:
    script = """
call(1024, threads=4)
print(tasks() - before)
call(5000, threads=4)
print(tasks() - before)
"""
    assert run(script) == [0, 3]


EVERY = """
n = 100_000
x, ids, mask = np.linspace(-1, 1, n), np.arange(n), np.ones(n, bool)
half = lambda *shape: np.zeros(shape, np.float16)
fresh = lambda: np.empty(n, np.int64)
t = _core.tokens
call(n)
t.exp(x, np.empty(n))
t.value_sums(x, x, mask, np.empty(t.SUM_WORDS, np.int64))
t.ordered_scores(x, fresh())
t.random_scores(ids, 1, 2, fresh())
t.radix_histogram(ids, ids, 0, 0, 0, np.empty(256, np.int64))
t.repeated_id(ids[::-1].copy(), mask)
t.members(ids, ids[:50], np.empty(n, bool))
_core.rows.transpose(half(64, 4096), half(4096, 64))
_core.topk.sparse_multiply(
    np.arange(n + 1), np.zeros(n, np.int32), np.ones(n, np.float32),
    names=np.arange(n, dtype=np.int32),
    dense=np.ones((1, 3), np.float32), out=np.empty((n, 3), np.float32),
)
_core.rows.Rows(64, targets=np.zeros(64, np.int64)).forward(
    np.zeros((64, 9000), np.float32), np.empty((64, 8))
)
print(tasks() - before)
"""


def test_a_call_that_names_no_threads_has_the_default() -> None:
    assert run(EVERY, LOGITLESS_NUM_THREADS="3") == [2]
    assert run("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})" + EVERY) == [0]
