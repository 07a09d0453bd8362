"""Checks of the emulated kernels of kept entries against plain Python, without torch: see
__init__.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.simt import problem as rows
from tests.simt.problem import Array, Problem

# What a block looks at at once, and what it has room for: borders of its steps.
STEP, ROOM = 1024, 2048


class Kept:
    """Arrays of exactly the size that kernels may touch."""

    def __init__(self, n: int, keep: int, margin: float = math.inf) -> None:
        self.values, self.ids = np.full((n, 2 * keep), np.nan), np.full((n, 2 * keep), -7, np.int32)
        self.threshold, self.count = np.full(n, np.nan), np.full(n, -1)
        self.core = rows.module.CudaTopK(
            values=self.values, ids=self.ids, threshold=self.threshold, count=self.count,
            margin=margin,
        )  # fmt: skip

    def row(self, i: int) -> tuple[list[int], list[float]]:
        n = int(self.count[i])
        return self.ids[i, :n].tolist(), self.values[i, :n].tolist()


def captured(
    p: Problem, keep: int, margin: float = math.inf, cuts: tuple[int, ...] = ()
) -> tuple[Kept, Array]:
    """What is kept after the tiles between the cuts, and the state."""
    of, kept, state = p.rows(), Kept(p.n, keep, margin), np.full((p.n, 8), np.nan)
    for tile in rows.tiles(p.vocab, cuts):
        part = p.logits[..., tile]
        size = rows.module.CudaRows.workspace_bytes(p.n, part.shape[-1], part.itemsize)
        of.forward(
            rows.exported(part, p.dtype), state, start=tile.start, first=tile.start == 0,
            topk=kept.core, workspace=np.full(size, 0xFF, np.uint8),
        )  # fmt: skip
    rows.module.cuda_finalize(of, state, kept.core)
    return kept, state


def largest(y: Array, keep: int, margin: float) -> list[int]:
    order = sorted(range(len(y)), key=lambda i: (-y[i], i))
    limit = y.max() - margin
    return [i for i in order if y[i] > limit and y[i] > -math.inf][:keep]


def awkward(vocab: int, dtype: str, seed: int = 0) -> Problem:
    """Ties, sorted both ways, a late peak, -inf, both zeros."""
    z = np.random.default_rng(seed).standard_normal((7, vocab)) * 4
    z[1] = 1.5
    z[2] = np.sort(z[2])
    z[3] = np.round(z[3])
    z[4, -1] = 60.0
    z[5, : vocab - 1] = -np.inf
    z[6] = np.where(z[6] > 0, 0.0, -0.0)
    return Problem(dtype, rows.stored(z, dtype), np.zeros(7, np.int64))


def topk_entries() -> None:
    """The same as a sort has them, whatever the tiles, with rows longer than a block has room."""
    for dtype, vocab, keep, margin, cuts in (
        ("float32", 1, 1, math.inf, ()),
        ("float32", 2 * ROOM - 500, 3, math.inf, (STEP // 2 + 1,)),
        ("bfloat16", 2 * ROOM + 3, 64, 6.0, (1000, 1001, 4096)),
        ("float16", STEP + 1, 600, 1e3, (STEP,)),
    ):
        p = awkward(vocab, dtype)
        p.mask = np.arange(p.n) != 3
        kept, _ = captured(p, keep, margin, cuts)
        assert kept.count[3] == 0
        for i in np.flatnonzero(p.mask):
            ids, y = kept.row(i)
            right = largest(p.values[i], keep, margin)
            assert ids == right, (dtype, vocab, i, ids[:5], right[:5])
            assert y == p.values[i][right].tolist()


def topk_again() -> None:
    """Rows that are looked through once more, for more; others stay."""
    p, cuts = awkward(ROOM + 5, "bfloat16", 2), (STEP, STEP + 1)
    kept, state = captured(p, 16, 9.0, cuts)
    before = [kept.row(i) for i in range(p.n)]
    p.mask = np.arange(p.n) % 2 == 0
    more = Kept(p.n, 300, 9.0)
    more.count[:] = -5
    for tile in rows.tiles(p.vocab, cuts):
        part = rows.exported(p.logits[..., tile], p.dtype)
        rows.module.cuda_recapture(
            p.rows(), part, state, more.core, start=tile.start, first=tile.start == 0
        )
    rows.module.cuda_finalize(p.rows(), state, more.core)
    for i in range(p.n):
        if not p.mask[i]:
            assert more.count[i] == -5
            continue
        ids, y = more.row(i)
        assert ids == largest(p.values[i], 300, 9.0)
        assert ids[:16] == before[i][0]
        assert y == p.values[i][ids].tolist()


def topk_chain() -> None:
    """Through bias, softcap and temperatures: the largest of what the softmax sees."""
    p = rows.problem(4, ROOM + 77, "bfloat16", "all")
    kept, state = captured(p, 64, 8.0, (1300,))
    cap = p.options["softcap"]
    y = cap * np.tanh((p.values + p.options["bias"]) * p.options["logit_scale"] / cap)
    for i in range(p.n):
        ids, values = kept.row(i)
        assert values == sorted(values, reverse=True)
        assert values[0] == state[i, 0]
        assert np.abs(y[i, ids] - values).max() <= 4e-6
        limit = y[i].max() - 8.0 * p.options["temperature"][i]
        least = max(np.sort(y[i])[-64], limit)
        assert (y[i, ids] >= least - 8e-6).all()
        assert len(ids) >= min(64, int((y[i] > limit + 8e-6).sum()))


def topk_orders() -> None:
    """The order in which threads come changes no bit."""
    import os

    p, seen = awkward(ROOM + 9, "float32", 3), []
    for seed in range(3):
        os.environ["LOGITLESS_SIMT_SEED"] = str(seed)
        kept, _ = captured(p, 16, math.inf, (1500,))
        seen.append([kept.row(i) for i in range(p.n)])
    assert seen[1:] == seen[:1] * 2


def measured(p: Problem, kept: Kept, state: Array, step: int, enough: float) -> Array:
    dropped = np.full((2, p.n), np.nan)
    rows.module.cuda_measure(
        p.rows(), state, kept.core, dropped_mass=dropped[0], dropped_entropy=dropped[1],
        wider=np.zeros(p.n, bool), step=step, most=kept.values.shape[1] // 2, enough=enough,
        slack=0.01 * enough,
    )  # fmt: skip
    return dropped


def topk_measures() -> None:
    """Mass and entropy of what is dropped, the target kept once, and the gradient of the kept."""
    rng = np.random.default_rng(5)
    z = rng.standard_normal((6, 300)) * np.array([0.1, 1, 3, 6, 9, 20])[:, None]
    p = Problem("float32", rows.stored(z, "float32"), rng.integers(0, 300, 6))
    kept, state = captured(p, 32, 40.0)
    mass, entropy = measured(p, kept, state, 8, 0.02)
    logp = p.values - p.values.max(1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(1, keepdims=True))
    h = -(np.exp(logp) * logp).sum(1)
    for i in range(p.n):
        ids, _ = kept.row(i)
        assert sorted(set(ids)) == sorted(ids) and p.targets[i] in ids
        others = np.setdiff1d(np.arange(300), ids)
        lost = np.exp(logp[i, others])
        assert abs(lost.sum() - mass[i]) <= 2e-6, (i, lost.sum(), mass[i])
        if np.isfinite(entropy[i]):
            assert abs(np.abs(lost * (logp[i, others] + h[i])).sum() - entropy[i]) <= 2e-5
    assert (mass[3:] <= 0.02).all() and (mass[:2] > 0.5).all()
    index, g = np.array([5, 3, 3]), rows.upstream(6, np.float32, 4)
    offsets = np.concatenate(([0], np.cumsum(kept.count[index])))
    columns, values = np.full(offsets[-1], -1, np.int32), np.full(offsets[-1], np.nan, np.float32)
    rows.module.cuda_sparse_gradient(
        p.rows(),
        state,
        kept.core,
        index=index,
        offsets=offsets,
        columns=columns,
        values=values,
        **g,
    )
    right = plain_gradient(p, logp, h, g)
    for i, row in enumerate(index):
        part = slice(offsets[i], offsets[i + 1])
        assert columns[part].tolist() == kept.row(row)[0]
        np.testing.assert_allclose(values[part], right[row, columns[part]], rtol=2e-5, atol=2e-6)


def plain_gradient(p: Problem, logp: Array, h: Array, g: dict[str, Array]) -> Array:
    weights, onehot = np.exp(logp), np.arange(p.vocab) == p.targets[:, None]
    gp, gh, gl = (g[name].astype(np.float64)[:, None] for name in ("g_logp", "g_entropy", "g_lse"))
    return gp * (onehot - weights) - gh * weights * (logp + h[:, None]) + gl * weights


def topk_far() -> None:
    """Offsets beyond 2^31 elements."""
    p = rows.problem(3, 300, "bfloat16")
    (near, expected), (kept, state) = captured(p, 8), captured(rows.far(p), 8)
    assert [kept.row(i) for i in range(3)] == [near.row(i) for i in range(3)]
    np.testing.assert_array_equal(state, expected)


def sparse_matrix(rng: Any, counts: Array, columns: int) -> tuple[Array, Array, Array]:
    offsets = np.concatenate(([0], np.cumsum(counts)))
    found = rng.integers(0, columns, offsets[-1]).astype(np.int32)
    return offsets, found, rng.standard_normal(offsets[-1]).astype(np.float32)


def sparse_products() -> None:
    """Rows of no entry, of one and of several chains; all pairs of dtypes; rows that are not there
    are not touched; widths and addresses that are no vectors."""
    rng, chain = np.random.default_rng(6), rows.module.CHAIN
    counts = np.array([0, 1, 5, chain, chain + 1, 0, 2 * chain + 7])
    for (of_dense, of_out), width, add, shift in (
        (("bfloat16", "bfloat16"), 70, True, 0), (("bfloat16", "float32"), 33, False, 1),
        (("float16", "float16"), 16, True, 3), (("float32", "float32"), 530, True, 0),
        (("float16", "float32"), 8, True, 0), (("float32", "bfloat16"), 5, False, 0),
    ):  # fmt: skip
        csr = sparse_matrix(rng, counts, 40)
        names = np.array([3, 9, 0, 5, 6, 8, 2], np.int32)
        dense = rows.at_offset(rows.stored(rng.standard_normal((40, width)), of_dense), shift)
        before = rows.stored(rng.standard_normal((10, width)), of_out)
        out = rows.at_offset(before, shift)
        long = np.where(counts > chain, -(-counts // chain), 0)
        for ends, slots in ((None, None), (np.cumsum(long), 2 * int(counts.sum()) // chain)):
            out[...] = before
            sums = None if slots is None else np.full((slots, width), np.nan, np.float32)
            rows.module.cuda_sparse_multiply(
                *csr, names=names, dense=rows.exported(dense, of_dense),
                out=rows.exported(out, of_out), add=add, chains=ends, sums=sums,
            )  # fmt: skip
            ours, old = rows.exact(out, of_out), rows.exact(before, of_out)
            matrix = rows.exact(dense, of_dense)
            right = old.copy()
            for i, name in enumerate(names):
                part = slice(csr[0][i], csr[0][i + 1])
                total = csr[2][part].astype(np.float64) @ matrix[csr[1][part]]
                right[name] = total + (old[name] if add else 0)
            size = 2.0**-8 if of_out == "bfloat16" else 2.0**-11 if of_out == "float16" else 1e-6
            assert (np.abs(ours - right) <= size * np.abs(right) + 4e-4).all(), (of_dense, of_out)
            assert (ours[[1, 4, 7]] == old[[1, 4, 7]]).all()
    sparse_row_sums(rng, csr, names)


def sparse_far() -> None:
    """Rows of either matrix beyond 2^31 elements."""
    rng = np.random.default_rng(7)
    dense, before = (rng.standard_normal((3, 40)).astype(np.float32) for _ in range(2))
    csr = (np.array([0, 1, 3]), np.array([2, 1, 0], np.int32), np.ones(3, np.float32))
    out = rows.far_apart(before, rows.FAR)
    rows.module.cuda_sparse_multiply(
        *csr, names=np.array([2, 0], np.int32), dense=rows.far_apart(dense, rows.FAR), out=out,
        add=False, chains=None, sums=None,
    )  # fmt: skip
    np.testing.assert_array_equal(out, [dense[1] + dense[0], before[1], dense[2]])


def sparse_row_sums(rng: Any, csr: tuple[Array, Array, Array], names: Array) -> None:
    total = rng.standard_normal(10).astype(np.float32)
    right = total.astype(np.float64)
    rows.module.cuda_sparse_add_row_sums(*csr, names=names, out=total)
    for i, name in enumerate(names):
        right[name] += csr[2][csr[0][i] : csr[0][i + 1]].astype(np.float64).sum()
    np.testing.assert_allclose(total, right, rtol=1e-6, atol=1e-5)


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        topk_entries, topk_again, topk_chain, topk_orders, topk_measures, topk_far,
        sparse_products, sparse_far,
    )
}  # fmt: skip
