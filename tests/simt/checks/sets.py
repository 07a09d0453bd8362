"""Checks of the emulated kernels of rows over sets against the oracle: see __init__.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.simt import pair_problem as pairs
from tests.simt import problem as rows
from tests.simt.oracle import oracle, tolerances
from tests.simt.pair_problem import BETA, KINDS
from tests.simt.problem import Array, Problem

reference, divergence = oracle("rows"), oracle("divergence")
DTYPES = ("float32", "bfloat16", "float16")
NAMES = ("logp", "entropy", "lse")
# Entries of a warp's step; columns of a tile that a set may end at.
STEP, EDGE = 32, 128


class Sets:
    """Ids of rows as the kernels take them: offsets, columns, and memory for values."""

    def __init__(self, ids: list[list[int]]) -> None:
        self.ids = ids
        self.offsets = np.concatenate(([0], np.cumsum([len(row) for row in ids]))).astype(np.int64)
        flat = [i for row in ids for i in sorted(row)]
        self.columns = np.array(flat, np.int32)
        self.values = np.full(len(flat), np.nan, np.float32)

    @property
    def csr(self) -> tuple[Array, Array, Array]:
        return self.offsets, self.columns, self.values

    @property
    def row(self) -> Array:
        return np.repeat(np.arange(len(self.ids)), np.diff(self.offsets))


def some_sets(n: int, vocab: int, targets: Array, seed: int = 0) -> Iterator[Sets]:
    """The target alone, all ids, a few, ends of steps and of tiles, and rows of all kinds."""
    rng = np.random.default_rng(seed)
    edges = [i for i in (0, EDGE - 1, EDGE, vocab - 1) if i < vocab]
    kinds: list[Callable[[int], Any]] = [
        lambda i: [],
        lambda i: range(vocab),
        lambda i: rng.permutation(vocab)[: 1 + i % 5],
        lambda i: rng.permutation(vocab)[: STEP + i % 3 - 1],
        lambda i: edges,
    ]
    for kind in kinds:
        yield Sets([sorted({*map(int, kind(i)), int(targets[i])}) for i in range(n)])
    yield Sets([sorted({*map(int, kinds[i % 5](i)), int(targets[i])}) for i in range(n)])


# ---- products and tiles


def set_logits() -> None:
    """Widths and addresses that are no vectors; rows without an entry; a column that is no row."""
    rng = np.random.default_rng(1)
    for dtype, width, shift in (
        ("float32", 1, 0), ("float32", 131, 0), ("bfloat16", 70, 1), ("bfloat16", 256, 0),
        ("float16", 264, 3), ("float32", 512, 0),
    ):  # fmt: skip
        hidden, weight = (
            rows.at_offset(rows.stored(rng.standard_normal((n, width)), dtype), shift)
            for n in (9, 50)
        )
        sets = Sets([[], [3], list(range(50)), [7, 8], [], [1], [49], [], [0, 1, 2]])
        sets.columns[-1] = 50
        rows.module.cuda_logits(
            *sets.csr, hidden=rows.exported(hidden, dtype), weight=rows.exported(weight, dtype)
        )
        a, b = (rows.exact(x, dtype) for x in (hidden, weight))
        right = np.einsum("eh,eh->e", a[sets.row[:-1]], b[sets.columns[:-1]])
        np.testing.assert_allclose(sets.values[:-1], right, rtol=2e-6, atol=2e-5)
        assert np.isnan(sets.values[-1])
        # a product depends on its two rows alone
        for entry in (0, 5, 51, 55):
            alone = Sets([[int(sets.columns[entry])]])
            own = hidden[sets.row[entry]][None].copy()
            rows.module.cuda_logits(
                *alone.csr, hidden=rows.exported(own, dtype), weight=rows.exported(weight, dtype)
            )
            tolerances.assert_bitwise_equal(alone.values, sets.values[entry : entry + 1])


def set_tiles() -> None:
    """Out of tiles and into them, wherever these begin; and of some rows of larger sets."""
    vocab, n = 2 * EDGE + 9, 6
    for dtype in DTYPES:
        p = rows.problem(n, vocab, dtype)
        for sets in some_sets(n, vocab, p.targets):
            for cuts in ((), (EDGE,), (1, EDGE - 1, EDGE + 1)):
                out = np.full(p.logits.shape, 0x55, p.logits.dtype)
                sets.values[...] = np.nan
                for tile in rows.tiles(vocab, cuts):
                    for part in (slice(0, 2), slice(2, n)):
                        own = sets.offsets[part.start : part.stop + 1], sets.columns, sets.values
                        source, target = p.logits[part, tile], out[part, tile]
                        if len(cuts) == 1:
                            # memory that ends with the tile, or begins with it
                            source, target = source.copy(), target.copy()
                        at = {"start": tile.start}
                        rows.module.cuda_read_tile(*own, tile=rows.exported(source, dtype), **at)
                        rows.module.cuda_write_tile(*own, tile=rows.exported(target, dtype), **at)
                        out[part, tile] = target
                right = p.values[sets.row, sets.columns]
                assert sets.values.tolist() == right.astype(np.float32).tolist()
                expected = np.full(p.logits.shape, 0x55, p.logits.dtype)
                expected[sets.row, sets.columns] = p.logits[sets.row, sets.columns]
                tolerances.assert_bitwise_equal(out, expected)


def set_far() -> None:
    """Rows of every matrix beyond 2^31 elements."""
    p = rows.problem(3, 40, "bfloat16")
    far, sets = rows.far(p), Sets([[1], [0, 2], [1, 2]])
    out = rows.far_apart(np.zeros_like(p.logits), rows.FAR)
    rows.module.cuda_logits(*sets.csr, hidden=rows.exported(far.logits, p.dtype),
                            weight=rows.exported(far.logits, p.dtype))  # fmt: skip
    right = np.einsum("eh,eh->e", p.values[sets.row], p.values[sets.columns])
    np.testing.assert_allclose(sets.values, right, rtol=2e-6, atol=2e-5)
    rows.module.cuda_read_tile(*sets.csr, tile=rows.exported(far.logits, p.dtype), start=0)
    assert sets.values.tolist() == p.values[sets.row, sets.columns].tolist()
    rows.module.cuda_write_tile(*sets.csr, tile=rows.exported(out, p.dtype), start=0)
    tolerances.assert_bitwise_equal(
        out[sets.row, sets.columns].copy(), p.logits[sets.row, sets.columns]
    )


# ---- one softmax


def filled(p: Problem, sets: Sets) -> Problem:
    """The problem with its bias in the values of the sets, as the kernels take it."""
    bias = p.options.get("bias")
    exact = p.values[sets.row, sets.columns].astype(np.float32)
    sets.values[...] = exact if bias is None else exact + bias.astype(np.float32)[sets.columns]
    options = {key: x for key, x in p.options.items() if key != "bias"}
    return Problem(p.dtype, p.logits, p.targets, options, p.mask)


def set_results(of: Problem, sets: Sets, ids: Array | None = None) -> tuple[Any, Array, int]:
    state = np.full((of.n, 8), np.nan)
    outputs = {name: np.full(of.n, np.nan, np.float32) for name in rows.REALS}
    outputs["argmax"] = np.full(of.n, 85, np.int64)
    flag = np.full(1, rows.NO_ERROR, np.int64)
    made = of.rows()
    rows.module.cuda_forward(made, *sets.csr, state, extras=True)
    made.finalize(state, of.vocab, error=flag, row_ids=ids, **outputs)
    return outputs, state, int(flag[0])


def set_gradient(of: Problem, sets: Sets, state: Array, g: dict[str, Array]) -> Array:
    out = np.full(len(sets.values), np.nan, np.float32)
    rows.module.cuda_gradient(of.rows(), *sets.csr, state, out, **g)
    return out


def set_rows() -> None:
    """Values, extras and gradients through every chain; masked rows, and rows without a gradient;
    -inf within a set."""
    n, vocab = 7, 2 * EDGE + 9
    for i, kind in enumerate(rows.CHAINS):
        p = rows.problem(n, vocab, DTYPES[i % 3], kind)
        p.mask = np.arange(n) != 2 if i % 2 else None
        active = np.full(n, True) if p.mask is None else p.mask
        g = rows.upstream(n, (np.float64, np.float32)[i % 2])
        for sets in some_sets(n, vocab, p.targets, i):
            of = filled(p, sets)
            given = {"mask": p.mask, "sets": sets.ids, **p.options}
            truth = reference.token_stats(p.values, p.targets, **given)
            outputs, state, flag = set_results(of, sets)
            assert flag == rows.NO_ERROR
            for name, ours in outputs.items():
                if name == "argmax":
                    assert (ours[~active] == -1).all()
                    assert p.options or (ours == truth[name])[active].all()
                else:
                    np.testing.assert_allclose(ours, truth[name], rtol=1e-4, atol=1e-4)
            for name in NAMES:
                tolerances.assert_values(outputs[name] / 4, truth[name] / 4, "float32")
            wide = {name: x.astype(np.float64) for name, x in g.items()}
            right, _ = reference.token_stats_backward(p.values, p.targets, **wide, **given)
            found = set_gradient(of, sets, state, g)
            dense = np.zeros(right.shape)
            dense[sets.row, sets.columns] = found
            assert np.isfinite(found).all()
            np.testing.assert_allclose(dense, right, rtol=1e-4, atol=2e-5)


def set_errors() -> None:
    """The first bad row by its name; its outputs are NaN, and the others' as without it."""
    targets = np.array([1, 2, 3, 4], np.int64)
    sets = Sets([[1, 5], [2, 7, 9], [3], [4, 6]])
    p = Problem("float32", np.zeros((4, 12), np.float32), targets)
    for kind, (column, value) in {
        1: (7, np.inf), 2: (9, np.nan), 3: (None, -np.inf), 4: (None, 0.0)
    }.items():  # fmt: skip
        of = filled(p, sets)
        mine = sets.values[2:5]
        if column is None:
            mine[...] = value
        else:
            mine[[2, 7, 9].index(column)] = value
        of.targets = np.array([1, 5 if kind == 4 else 2, 3, 4])
        for ids, name in ((None, 1), (np.array([40, 30, 20, 10]), 30)):
            outputs, _, flag = set_results(of, sets, ids)
            assert flag == name * 8 + kind, (kind, flag)
            assert np.isnan(outputs["logp"][1]) and np.isfinite(outputs["logp"][[0, 2, 3]]).all()
        of.mask = targets != 2
        assert set_results(of, sets)[2] == rows.NO_ERROR


def set_orders() -> None:
    """The order in which threads come changes no bit."""
    p, seen = rows.problem(7, 2 * EDGE + 9, "float32", "all"), []
    *_, sets = some_sets(7, p.vocab, p.targets)
    for seed in range(3):
        os.environ["LOGITLESS_SIMT_SEED"] = str(seed)
        of = filled(p, sets)
        _, state, _ = set_results(of, sets)
        seen.append((state, set_gradient(of, sets, state, rows.upstream(7))))
    for state, found in seen[1:]:
        tolerances.assert_bitwise_equal(state, seen[0][0])
        tolerances.assert_bitwise_equal(found, seen[0][1])


# ---- a student's softmax beside a teacher's


def set_pairs() -> None:
    """Values and gradients of every kind through chains of both; masked rows; nothing in common;
    noise on the teacher."""
    n, vocab = 7, 2 * EDGE + 9
    for masked, *chains in (
        (False, "plain", "plain"), (True, "all", "softcap"), (False, "row_temperature", "all")
    ):  # fmt: skip
        p = pairs.pair(n, vocab, ("float32", "bfloat16"), (str(chains[0]), str(chains[1])))
        p.student.mask = np.arange(n) != 4 if masked else None
        for sets in some_sets(n, vocab, p.student.targets):
            one, other = filled(p.student, sets), Sets(sets.ids)
            two = filled(p.teacher, other)
            both, values = (one.rows(), two.rows()), (sets.values, other.values)
            p.noise = None if masked else pairs.noise_of_rows(n)
            more = {"columns": sets.columns, "noise": p.noise_there()}
            known = {
                "noise": p.noise, "sets": sets.ids, "mask": p.student.mask,
                "student": p.student.options, "teacher": p.teacher.options,
            }  # fmt: skip
            arrays = p.student.values, p.teacher.values
            state, sums = np.full((n, 8), np.nan), np.full((n, 2), np.nan)
            rows.module.cuda_entries_forward(*both, sets.offsets, *values, state, **more)
            rows.module.cuda_entries_mix(
                *both, sets.offsets, *values, state, sums, beta=BETA, **more
            )
            outputs = {name: np.full(n, np.nan, np.float32) for name in pairs.OUTPUTS}
            flag = np.full(1, rows.NO_ERROR, np.int64)
            rows.module.CudaPair(*both).finalize(state, error=flag, **outputs)
            assert flag[0] == rows.NO_ERROR
            truth = divergence.divergence(*arrays, **known)
            for name, ours in outputs.items():
                np.testing.assert_allclose(ours, truth[name], rtol=2e-5, atol=2e-5, err_msg=name)
            mixed = divergence.divergence(*arrays, kind="jsd", beta=BETA, **known)["divergence"]
            both_kl = (1 - BETA) * sums[:, 0] + BETA * sums[:, 1]
            np.testing.assert_allclose(both_kl, mixed, rtol=2e-5, atol=2e-5)
            g = pairs.upstream(n)
            for kind in KINDS:
                found = np.full(len(sets.values), np.nan, np.float32)
                rows.module.cuda_entries_gradient(
                    *both,
                    sets.offsets,
                    *values,
                    state,
                    found,
                    kind=kind,
                    beta=BETA,
                    sums=sums,
                    **g,
                    **more,
                )
                right, _ = divergence.divergence_backward(
                    *arrays, kind=kind, beta=BETA, **g, **known
                )
                dense = np.zeros(right.shape)
                dense[sets.row, sets.columns] = found
                finite = np.isfinite(right).all(1)
                assert (np.isfinite(dense).all(1) == finite).all()
                size = max(1.0, float(np.abs(right[finite]).max(initial=0)))
                assert np.abs(dense - right)[finite].max(initial=0) <= 5e-5 * size, kind


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (set_logits, set_tiles, set_far, set_rows, set_errors, set_orders, set_pairs)
}
