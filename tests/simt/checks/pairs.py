"""Checks of the emulated kernels of two softmaxes against the oracle: see __init__.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.simt import pair_problem as pairs
from tests.simt import problem as rows
from tests.simt.oracle import oracle, tolerances
from tests.simt.pair_problem import BETA, KINDS, OUTPUTS, Pair, PairResult
from tests.simt.problem import CHAINS, Array, Forbidden, Problem

reference = oracle("divergence")
# A split has 1024 columns, a block of the backward 4096.
SPLIT, BLOCK = 1024, 4096
DTYPES = (
    ("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "bfloat16"),
    ("bfloat16", "float32"), ("float32", "float16"),
)  # fmt: skip


def known(p: Pair) -> dict[str, Any]:
    sides = {"student": p.student.options, "teacher": p.teacher.options}
    return {"mask": p.student.mask, "noise": p.noise, **sides}


def noise_of(p: Pair) -> Array:
    if p.noise is None:
        return np.zeros((p.n, p.vocab))
    seed, step = p.noise["seed"], p.noise["step"]
    normal = [
        reference.teacher_noise(seed, step, i, np.arange(p.vocab)) for i in p.noise["row_ids"]
    ]
    return p.noise["sizes"][:, None] * np.reshape(normal, (p.n, p.vocab))


def plain(p: Pair) -> dict[str, Array]:
    """KL, entropies and the divergences from the mix as float32 has them, of unmasked rows."""
    logs = []
    for side, noise in ((p.student, 0.0), (p.teacher, noise_of(p))):
        z = (reference.logits_chain(side.values, **side.options) + noise).astype(np.float32)
        x = z - z.max(1, keepdims=True)
        logs.append(x - np.log(np.exp(x).sum(1, keepdims=True)))
    log_p, log_q = logs
    p_, q_ = np.exp(log_p), np.exp(log_q)

    def expected(weights: Array, values: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return np.where(weights > 0, weights * values, np.float32(0)).sum(1)

    with np.errstate(invalid="ignore"):
        gap = log_p - log_q
        log_m = np.logaddexp(log_p + np.float32(np.log(1 - BETA)), log_q + np.float32(np.log(BETA)))
        own, other = log_p - log_m, log_q - log_m
    return {
        "entropy": -expected(p_, log_p), "teacher_entropy": -expected(q_, log_q),
        "reverse_kl": expected(p_, gap), "forward_kl": expected(q_, -gap),
        "jsd": (1 - BETA) * expected(p_, own) + BETA * expected(q_, other),
    }  # fmt: skip


def assert_stats(p: Pair, result: PairResult) -> None:
    active = np.full(p.n, True) if p.student.mask is None else p.student.mask
    other = plain(p)
    truth = reference.divergence(p.student.values, p.teacher.values, **known(p))
    for name in OUTPUTS:
        slack = np.where(active, other[name], 0)
        tolerances.assert_values(result.outputs[name], truth[name], "float32", plain=slack)
    options = {"kind": "jsd", "beta": BETA}
    truth = reference.divergence(p.student.values, p.teacher.values, **options, **known(p))
    mixed = (1 - BETA) * result.sums[:, 0] + BETA * result.sums[:, 1]
    slack = np.where(active, other["jsd"], 0)
    ours = np.maximum(mixed, 0)
    tolerances.assert_values(ours, truth["divergence"], "float32", plain=slack)
    assert result.flag == rows.NO_ERROR, result.flag


def assert_gradient(p: Pair, ours: Array, kind: str, upstream: dict[str, Array]) -> None:
    g = {name: values.astype(np.float64) for name, values in upstream.items()}
    options = {"kind": kind, "beta": BETA, **g, **known(p)}
    truth, _ = reference.divergence_backward(p.student.values, p.teacher.values, **options)
    mine = rows.exact(ours, p.student.dtype).reshape(truth.shape)
    finite = np.isfinite(truth).all(1)
    assert (np.isfinite(mine).all(1) == finite).all()
    # a gap is rounded at its own size, the y of a chain at its own
    size = max(float(np.abs(v[np.isfinite(v)]).max(initial=0)) for v in plain(p).values())
    scale = 4 + 2 * size + 16 * bool(p.student.options or p.teacher.options)
    tolerances.assert_gradients(mine[finite], truth[finite], p.student.dtype, scale=scale)


def both(p: Pair, **options: Any) -> tuple[PairResult, dict[str, Array]]:
    """Forward, and the backward of every kind; in place it gives the same bits."""
    result, g = pairs.stats(p, **options), pairs.upstream(p.n)
    assert_stats(p, result)
    found = {}
    for kind in KINDS:
        found[kind] = pairs.gradient(p, result, kind, g, **options)
        assert_gradient(p, found[kind], kind, g)
        in_place = pairs.gradient(p, result, kind, g, in_place=True, **options)
        tolerances.assert_bitwise_equal(found[kind], in_place)
    return result, found


def same(a: PairResult, b: PairResult) -> None:
    assert a.flag == b.flag
    for x, y in ((a.state, b.state), (a.sums, b.sums)):
        tolerances.assert_bitwise_equal(x, y)
    for name in OUTPUTS:
        tolerances.assert_bitwise_equal(a.outputs[name], b.outputs[name])


# ---- the checks


def pair_shapes() -> None:
    """Sizes around lanes, quads, splits and blocks; every pair of storage types."""
    for dtypes in DTYPES:
        for n, vocab in ((0, 7), (1, 1), (9, 127), (2, SPLIT), (3, SPLIT + 1)):
            both(pairs.pair(n, vocab, dtypes))
        both(pairs.pair(2, BLOCK + SPLIT + 3, dtypes))


def pair_chains() -> None:
    for own, other in zip(CHAINS, CHAINS[3:] + CHAINS[:3], strict=True):
        both(pairs.pair(5, 300, DTYPES[0], (own, other)))
        both(pairs.pair(2, SPLIT + 3, DTYPES[3], (other, own)))


def pair_masks() -> None:
    """Masked rows, and rows whose gradients are zero, are unreadable memory and never touched."""
    n, vocab = 9, 2048
    for own, other in DTYPES[:1] + DTYPES[3:4]:
        p = pairs.pair(n, vocab, (own, other))
        mask = np.arange(n) % 3 != 1
        values = [np.where(mask[:, None], side.values, 0) for side in (p.student, p.teacher)]
        p.student.mask = mask

        def hidden(unread: Array, p: Pair = p, values: Any = values) -> None:
            for side, known_values in zip((p.student, p.teacher), values, strict=True):
                side.logits = Forbidden(known_values, side.dtype, unread).array

        hidden(~mask)
        result = pairs.stats(p)
        readable = Pair(*(
            Problem(side.dtype, rows.stored(v, side.dtype), side.targets, mask=mask)
            for side, v in zip((p.student, p.teacher), values, strict=True)
        ))  # fmt: skip
        assert_stats(readable, result)
        g = pairs.upstream(n)
        idle = ~mask | (np.arange(n) % 4 == 0)
        hidden(idle)
        for kind in KINDS:
            gradient = pairs.gradient(p, result, kind, g)
            assert_gradient(readable, gradient, kind, g)
            assert (gradient[idle] == 0).all()
        hidden(np.full(n, True))
        assert (pairs.gradient(p, result, "forward_kl", {}) == 0).all()


def pair_nowhere() -> None:
    """Columns to which one side, the other or both give no mass, inside splits and at their end."""
    for dtypes in DTYPES[1::2]:
        for vocab in (5, SPLIT + 3, 2 * SPLIT):
            p = pairs.pair(8, vocab, dtypes)
            own, other = p.student.values, p.teacher.values
            own[1, -2:] = -np.inf
            other[2, -2:] = -np.inf
            own[3, 1:], other[3, 1:] = -np.inf, -np.inf
            own[5, : vocab // 2] = -np.inf
            other[6, : vocab // 2] = -np.inf
            own[7, 1::2], other[7, ::2] = -np.inf, -np.inf  # nothing in common
            p.student.logits = rows.stored(own, p.student.dtype)
            p.teacher.logits = rows.stored(other, p.teacher.dtype)
            both(p)
            both(p, cuts=(vocab // 2,))


def pair_errors() -> None:
    """Bad rows are NaN and leave the others alone; the flag names the first by its id."""
    bad = {1: np.inf, 2: np.nan, 3: -np.inf}
    for vocab in (5, SPLIT + 3):
        for kind in (1, 2, 3, 6):
            for value in bad.values() if kind == 6 else (bad[kind],):
                p = pairs.pair(6, vocab, DTYPES[1])
                good, side = pairs.stats(p), p.teacher if kind == 6 else p.student
                values = side.values
                for i in (2, 4):
                    if value == -np.inf:
                        values[i] = value
                    values[i, vocab - i] = value
                side.logits = rows.stored(values, side.dtype)
                ids = np.array([60, 50, 40, 30, 20, 10])
                for row_ids, first in ((None, 2), (ids, 20)):
                    result = pairs.stats(p, row_ids=row_ids)
                    assert result.flag == first * 8 + kind, (vocab, kind, result.flag)
                for name in OUTPUTS:
                    ours = result.outputs[name]
                    assert np.isnan(ours[[2, 4]]).all(), (name, kind, ours)
                    tolerances.assert_bitwise_equal(
                        np.delete(ours, [2, 4]), np.delete(good.outputs[name], [2, 4])
                    )
                # Under a mask none of that counts.
                p.student.mask = np.array([True, True, False, True, False, True])
                masked = pairs.stats(p)
                assert masked.flag == rows.NO_ERROR
                assert (masked.sums[[2, 4]] == 0).all()


def pair_layout() -> None:
    """Strides, and rows that start anywhere, change no bit."""
    for dtypes in DTYPES[1:4]:
        for vocab in (127, SPLIT + 1, BLOCK + 4):
            p = pairs.pair(4, vocab, dtypes, ("all", "bias") if vocab == 127 else ("plain",) * 2)
            expected, g = pairs.stats(p), pairs.upstream(4, np.float32)
            right = {kind: pairs.gradient(p, expected, kind, g) for kind in KINDS}
            sides = []
            for side in (p.student, p.teacher):
                wide = np.full((2, 3, vocab + 5), 0x5A5A, side.logits.dtype)
                view = wide[:, 1:, 2 : vocab + 2]
                view[...] = side.logits.reshape(view.shape)
                sides.append([view, *(rows.at_offset(side.logits, k) for k in (1, 2, 4))])
            own, other = sides
            for logits, others in zip(
                [*own, own[0]], [*other[1:], other[0], other[0]], strict=True
            ):
                q = Pair(*(
                    Problem(side.dtype, z, side.targets, side.options)
                    for side, z in ((p.student, logits), (p.teacher, others))
                ))  # fmt: skip
                same(pairs.stats(q), expected)
                for kind in KINDS:
                    for in_place in (False, True):
                        ours = pairs.gradient(q, expected, kind, g, in_place=in_place)
                        tolerances.assert_bitwise_equal(
                            ours.reshape(right[kind].shape), right[kind]
                        )


def pair_tiles() -> None:
    """Several vocabulary tiles: the oracle's values, and gradients of the same bits."""
    for dtypes in DTYPES[:4]:
        for cuts in ((SPLIT,), (1000, 1001, 2048)):
            kinds = ("all", "softcap") if dtypes[0] == "float32" else ("plain", "plain")
            p = pairs.pair(3, SPLIT * 2 + 77, dtypes, kinds)
            cut, found = both(p, cuts=cuts)
            for kind in KINDS:
                whole = pairs.gradient(p, cut, kind, pairs.upstream(3))
                tolerances.assert_bitwise_equal(found[kind], whole)


def pair_far() -> None:
    """Offsets beyond 2^31 elements."""
    p = pairs.pair(3, 300, ("bfloat16", "float32"))
    expected, g = pairs.stats(p), pairs.upstream(3)
    q = Pair(rows.far(p.student), rows.far(p.teacher))
    same(pairs.stats(q), expected)
    out = rows.far_apart(np.zeros_like(p.student.logits), rows.FAR)
    ((own, other, memory, _),) = pairs.tiles_of(q, ())
    for kind in KINDS:
        q.kernels().gradient(
            own, other, expected.state, rows.exported(out, "bfloat16"), memory, kind=kind,
            beta=BETA, sums=expected.sums, **g,
        )  # fmt: skip
        tolerances.assert_bitwise_equal(out, pairs.gradient(p, expected, kind, g))


def pair_alone() -> None:
    """A row by itself, and any order of threads and blocks, have the same bits."""
    p = pairs.pair(7, SPLIT + 1, ("bfloat16", "bfloat16"), ("all", "row_temperature"))
    expected, g = pairs.stats(p), pairs.upstream(7)
    gradients = {kind: pairs.gradient(p, expected, kind, g) for kind in KINDS}
    for i in (0, 3, 6):
        one = pairs.stats(p.row(i))
        tolerances.assert_bitwise_equal(one.state[0], expected.state[i])
        tolerances.assert_bitwise_equal(one.sums[0], expected.sums[i])
        mine = {name: values[i : i + 1].copy() for name, values in g.items()}
        for kind in KINDS:
            ours = pairs.gradient(p.row(i), one, kind, mine)
            tolerances.assert_bitwise_equal(ours[0], gradients[kind][i])
    for seed in range(3):
        os.environ["LOGITLESS_SIMT_SEED"] = str(seed)
        same(pairs.stats(p), expected)
        for kind in KINDS:
            ours = pairs.gradient(p, expected, kind, g)
            tolerances.assert_bitwise_equal(ours, gradients[kind])


def pair_noise() -> None:
    """The oracle's, wherever tiles begin and in any order of threads, after the chain of a row; a
    row of size 0 has the bits that it has without. A rank's columns have the noise of their
    tokens."""
    for dtypes, kinds in ((DTYPES[0], ("plain",) * 2), (DTYPES[3], ("all", "row_temperature"))):
        for vocab in (5, SPLIT + 3, BLOCK + SPLIT + 77):
            p = pairs.pair(5, vocab, dtypes, kinds)
            p.noise = pairs.noise_of_rows(5)
            whole, _ = both(p)
            plain_pair = Pair(p.student, p.teacher)
            quiet = pairs.stats(plain_pair)
            tolerances.assert_bitwise_equal(
                whole.outputs["forward_kl"][1], quiet.outputs["forward_kl"][1]
            )
            # a peaked row may round to the same
            assert whole.outputs["forward_kl"][0] != quiet.outputs["forward_kl"][0]
            tolerances.assert_bitwise_equal(pairs.stats(p.row(3)).state[0], whole.state[3])
            if vocab < SPLIT:
                continue
            cuts = (37, 1000, 1001)
            cut, parts = both(p, cuts=cuts)
            for kind in KINDS:
                again = pairs.gradient(p, cut, kind, pairs.upstream(5))
                tolerances.assert_bitwise_equal(parts[kind], again)
    p = pairs.pair(4, SPLIT + 90, DTYPES[2])
    p.noise = pairs.noise_of_rows(4)
    whole, g = pairs.stats(p), pairs.upstream(4)
    shard = Pair(
        *(Problem(x.dtype, x.logits[:, 77:].copy(), x.targets) for x in (p.student, p.teacher)),
        p.noise,
        77,
    )
    for kind in KINDS:
        ours = pairs.gradient(shard, whole, kind, g)
        right = pairs.gradient(p, whole, kind, g)[:, 77:]
        tolerances.assert_bitwise_equal(ours, right)


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        pair_shapes, pair_chains, pair_masks, pair_nowhere, pair_errors, pair_layout, pair_tiles,
        pair_far, pair_alone, pair_noise,
    )
}  # fmt: skip
