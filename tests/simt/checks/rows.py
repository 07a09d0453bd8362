"""Checks of the emulated row kernels against the oracle."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.simt import problem as rows
from tests.simt.oracle import oracle, tolerances
from tests.simt.problem import CHAINS, REALS, Array, Forbidden, Problem, Result

DTYPES = ("float32", "bfloat16", "float16")
# A piece is 2048 float32 or 4096 16-bit columns.
PIECE = 4096
reference = oracle("rows")


def assert_stats(p: Problem, result: Result) -> None:
    """All outputs against the oracle; masked rows are 0 and their argmax -1."""
    truth = reference.token_stats(p.values, p.targets, mask=p.mask, **p.options)
    plain = plain_stats(p) if p.options else {}
    for name, ours in result.outputs.items():
        if name == "argmax":
            active = np.full(p.n, True) if p.mask is None else p.mask
            # The first of equal logits, as the kernels see them.
            assert (ours[~active] == -1).all()
            y = reference.logits_chain(p.values, **{**p.options, "temperature": 1.0})
            for i in np.flatnonzero(active):
                near = np.spacing(np.float32(abs(y[i].max()))) * 2 if p.options else 0.0
                assert y[i, ours[i]] >= y[i].max() - near, (i, ours[i], truth[name][i])
                assert p.options or ours[i] == truth[name][i], (i, ours[i], truth[name][i])
        else:
            # Extras are differences of sums of squares of at most (log V)^2.
            scale = 1 if name in REALS[:3] else 30
            slack = plain[name] / scale if name in plain else None
            tolerances.assert_values(ours / scale, truth[name] / scale, p.dtype, plain=slack)
    assert result.flag == rows.NO_ERROR, result.flag


def assert_gradient(p: Problem, ours: Array, upstream: dict[str, Array]) -> None:
    g = {k: v.astype(np.float64) for k, v in upstream.items()}
    truth, _ = reference.token_stats_backward(p.values, p.targets, mask=p.mask, **g, **p.options)
    scale = 1.0
    if p.options:
        # The chain rounds y, and p with it, in plain code as here.
        scale += 2 * np.nanmax(np.abs(plain_gradient(p, g) - truth), initial=0) / 1e-6
    mine = rows.exact(ours, p.dtype).reshape(truth.shape)
    tolerances.assert_gradients(mine, truth, p.dtype, scale=scale)


def plain_chain(p: Problem) -> tuple[Array, Array]:
    """z and dz/draw in float32, as straightforward code has them."""
    one = np.float32(1)
    x = p.values.astype(np.float32)
    if "bias" in p.options:
        x = x + p.options["bias"].astype(np.float32)
    slope = np.float32(p.options.get("logit_scale", 1.0))
    x = x * slope
    temperature = np.asarray(p.options.get("temperature", 1.0), np.float32).reshape(-1, 1)
    if "softcap" in p.options:
        cap = np.float32(p.options["softcap"])
        t = np.tanh(x / cap)
        return cap * t / temperature, slope * (one - t * t) / temperature
    return x / temperature, np.broadcast_to(slope / temperature, x.shape)


def plain_moments(p: Problem) -> tuple[Array, Array, Array, Array]:
    z, slope = plain_chain(p)
    with np.errstate(invalid="ignore"):
        z = z - z.max(1, keepdims=True)
        logp = z - np.log(np.exp(z).sum(1, keepdims=True))
        weights = np.exp(logp)
        entropy = -np.where(weights > 0, weights * logp, 0).sum(1, keepdims=True)
    return logp, weights, entropy, slope


def plain_stats(p: Problem) -> dict[str, Array]:
    logp, _, entropy, _ = plain_moments(p)
    z = plain_chain(p)[0]
    chosen = logp[np.arange(p.n), p.targets]
    plain = {"logp": chosen, "entropy": entropy[:, 0]}
    plain["lse"] = z[np.arange(p.n), p.targets] - chosen
    active = np.full(p.n, True) if p.mask is None else p.mask
    return {name: np.where(active, value, 0) for name, value in plain.items()}


def plain_gradient(p: Problem, g: dict[str, Array]) -> Array:
    logp, weights, entropy, slope = plain_moments(p)
    onehot = np.arange(p.vocab) == p.targets[:, None]
    surprise = np.where(weights > 0, np.where(weights > 0, logp, 0) + entropy, 0)
    gp, gh, gl = (g[name][:, None].astype(np.float32) for name in ("g_logp", "g_entropy", "g_lse"))
    dz = (gp * (onehot - weights) - gh * weights * surprise + gl * weights) * slope
    return np.where(True if p.mask is None else p.mask[:, None], dz, 0)


def same(a: Result, b: Result) -> None:
    assert a.flag == b.flag
    tolerances.assert_bitwise_equal(a.state, b.state)
    for name, ours in a.outputs.items():
        tolerances.assert_bitwise_equal(ours, b.outputs[name])


def both(p: Problem, **options: Any) -> tuple[Result, Array]:
    """Forward and backward, each checked; backward in place gives the same bits."""
    result, g = rows.stats(p, **options), rows.upstream(p.n)
    assert_stats(p, result)
    gradient = rows.gradient(p, result, g, **options)
    assert_gradient(p, gradient, g)
    in_place = rows.gradient(p, result, g, in_place=True, **options)
    tolerances.assert_bitwise_equal(gradient, in_place)
    return result, gradient


# ---- the checks


def shapes() -> None:
    """Sizes around the lanes, vector widths and pieces; no rows; one row; more rows than lanes."""
    sizes = (0, 7), (1, 1), (33, 127), (2, 128), (3, 1025), (1, PIECE), (2, PIECE + 3)
    for dtype in DTYPES:
        for n, vocab in sizes:
            both(rows.problem(n, vocab, dtype))
        both(rows.problem(1, 3 * PIECE + 5, dtype))


def chains() -> None:
    for dtype in DTYPES[:2]:
        for kind in CHAINS:
            both(rows.problem(5, 300, dtype, kind))
            both(rows.problem(2, PIECE + 3, dtype, kind))


def masks() -> None:
    """Masked rows, and rows whose gradients are zero, are unreadable memory and never touched."""
    n = 9
    for dtype in DTYPES:
        vocab = os.sysconf("SC_PAGESIZE") // np.dtype(rows.STORAGE[dtype]).itemsize
        p = rows.problem(n, vocab, dtype)
        p.mask = np.arange(n) % 3 != 1
        values = np.where(p.mask[:, None], p.values, 0)
        p.logits = Forbidden(values, dtype, ~p.mask).array
        result = rows.stats(p)
        readable = Problem(dtype, rows.stored(values, dtype), p.targets, mask=p.mask)
        assert_stats(readable, result)
        g = rows.upstream(n)
        idle = ~p.mask | (np.arange(n) % 4 == 0)
        p.logits = Forbidden(values, dtype, idle).array
        gradient = rows.gradient(p, result, g)
        assert_gradient(readable, gradient, g)
        assert (gradient[idle] == 0).all()
        # In place the unread logits, here NaN, are still overwritten by zeros.
        p.logits = rows.stored(np.where(idle[:, None], np.nan, values), dtype)
        again = rows.gradient(p, result, g, in_place=True)
        tolerances.assert_bitwise_equal(again, gradient)
        # No gradients at all are zeros.
        p.logits = Forbidden(values, dtype, np.full(n, True)).array
        assert (rows.gradient(p, result, {}) == 0).all()


def errors() -> None:
    """Bad rows are NaN and leave the others alone; the flag names the first by its id."""
    kinds = {1: np.inf, 2: np.nan, 3: -np.inf}
    for vocab in (5, 1025, PIECE + 3):
        for kind in (1, 2, 3, 4):
            for dtype in DTYPES if vocab < 1025 else DTYPES[:1]:
                p = rows.problem(6, vocab, dtype)
                good = rows.stats(p)
                values = p.values
                for bad in (2, 4):
                    if kind == 3:
                        values[bad] = -np.inf
                    elif kind == 4:
                        p.targets[bad] = (vocab, -1)[bad // 4]
                    else:
                        values[bad, vocab - bad] = kinds[kind]
                p.logits = rows.stored(values, dtype)
                ids = np.array([60, 50, 40, 30, 20, 10])
                for row_ids, first in ((None, 2), (ids, 20)):
                    result = rows.stats(p, row_ids=row_ids)
                    assert result.flag == first * 8 + kind, (vocab, kind, dtype, result.flag)
                for name in REALS:
                    ours = result.outputs[name]
                    assert np.isnan(ours[[2, 4]]).all(), (name, kind, ours)
                    tolerances.assert_bitwise_equal(
                        np.delete(ours, [2, 4]), np.delete(good.outputs[name], [2, 4])
                    )
                assert (result.outputs["argmax"][[2, 4]] == -1).all()
    # Under a mask none of that counts.
    p.mask = np.array([True, True, False, True, False, True])
    assert rows.stats(p).flag == rows.NO_ERROR


def scaling() -> None:
    """A saturated softcap's slope to the last digits, and logits that scaling makes overflow."""
    u = np.linspace(-40, 40, 1030, dtype=np.float32)[None]
    for options in ({"softcap": 4.0}, {"softcap": 4.0, "logit_scale": 0.5, "temperature": 2.0}):
        raw = u * np.float32(4.0 / options.get("logit_scale", 1.0))
        p = Problem("float32", raw, np.array([1029]), options)
        g = {"g_logp": np.ones(1), "g_entropy": np.zeros(1), "g_lse": np.zeros(1)}
        ours = rows.gradient(p, rows.stats(p), g)
        right, _ = reference.token_stats_backward(p.values, p.targets, g_logp=1.0, **options)
        allowed = np.abs(right) * (2.0**-23 * (16 + 4 * np.abs(u)) + 2.0**-22)
        assert (np.abs(ours - right) <= allowed + 1e-37).all(), np.abs(ours / right - 1).max()
    p = Problem("float32", np.full((3, 5), 1e30, np.float32), np.zeros(3, np.int64))
    assert rows.stats(p).flag == rows.NO_ERROR
    p.options = {"temperature": np.array([1.0, 1e-20, 1e-20])}
    result = rows.stats(p)
    assert result.flag == 8 + 5
    assert np.isnan(result.outputs["logp"]).tolist() == [False, True, True]


def layout() -> None:
    """Strides, and rows that start anywhere, change no bit."""
    for dtype in DTYPES:
        for vocab in (127, 1025, PIECE + 3):
            p = rows.problem(4, vocab, dtype, "all" if vocab == 127 else "plain")
            expected = rows.stats(p)
            g = rows.upstream(4, np.float32)
            gradient = rows.gradient(p, expected, g)
            assert_gradient(p, gradient, g)
            wide = np.full((2, 3, vocab + 5), 0x5A5A, p.logits.dtype)
            view = wide[:, 1:, 2 : vocab + 2]
            view[...] = p.logits.reshape(view.shape)
            moved = [view, *(rows.at_offset(p.logits, shift) for shift in (1, 2, 3, 8))]
            for logits in moved:
                q = Problem(dtype, logits, p.targets, p.options)
                same(rows.stats(q), expected)
                for in_place in (False, True):
                    ours = rows.gradient(q, expected, g, in_place=in_place)
                    tolerances.assert_bitwise_equal(ours.reshape(gradient.shape), gradient)


def cut_tiles() -> None:
    """Several vocabulary tiles: the oracle's values, and gradients of the same bits."""
    for dtype in DTYPES:
        for cuts in ((PIECE,), (1000, 1001, 2048, 5000)):
            p = rows.problem(3, PIECE * 2 + 77, dtype, "all" if dtype == "float32" else "plain")
            whole, (cut, gradient) = rows.stats(p), both(p, cuts=cuts)
            expected = rows.gradient(p, cut, rows.upstream(3))
            tolerances.assert_bitwise_equal(gradient, expected)
            assert (whole.outputs["argmax"] == cut.outputs["argmax"]).all()


def far() -> None:
    """Offsets beyond 2^31 elements."""
    for dtype in ("float32", "bfloat16"):
        p = rows.problem(3, 300, dtype)
        expected, g = rows.stats(p), rows.upstream(3)
        gradient = rows.gradient(p, expected, g)
        q = rows.far(p)
        same(rows.stats(q), expected)
        out = rows.far_apart(np.zeros_like(p.logits), rows.FAR)
        q.rows().gradient(rows.exported(q.logits, dtype), expected.state,
                          rows.exported(out, dtype), start=0, **g)  # fmt: skip
        tolerances.assert_bitwise_equal(out, gradient)


def alone() -> None:
    """A row by itself has the bits of the same row among others."""
    for dtype, kind in (("float32", "plain"), ("bfloat16", "all"), ("float16", "plain")):
        p = rows.problem(11, 1025, dtype, kind)
        result, g = rows.stats(p), rows.upstream(p.n)
        gradient = rows.gradient(p, result, g)
        for i in (0, 5, 10):
            q = p.row(i)
            one = rows.stats(q)
            tolerances.assert_bitwise_equal(one.state[0], result.state[i])
            for name, ours in one.outputs.items():
                tolerances.assert_bitwise_equal(ours[0], result.outputs[name][i])
            mine = rows.gradient(q, one, {k: v[i : i + 1].copy() for k, v in g.items()})
            tolerances.assert_bitwise_equal(mine[0], gradient[i])


def orders() -> None:
    """The order in which threads and blocks come changes no bit."""
    for dtype in DTYPES:
        p = rows.problem(5, PIECE + 3, dtype, "all" if dtype == "bfloat16" else "plain")
        seen = []
        for seed in range(4):
            os.environ["LOGITLESS_SIMT_SEED"] = str(seed)
            result = rows.stats(p)
            seen.append((result, rows.gradient(p, result, rows.upstream(5))))
        for result, gradient in seen[1:]:
            same(result, seen[0][0])
            tolerances.assert_bitwise_equal(gradient, seen[0][1])


def extras() -> None:
    """The first of equal maxima, wherever the others are; and no extras when none are asked."""
    for dtype in DTYPES:
        # Neighbours, lanes, vectors of one lane (128 or 256 columns apart), pieces.
        places = ((1,), (3, 4), (37, 5), (900, 64), (1029, 1157, 1285), (0, PIECE),
                  (PIECE + 2, 2047, 2048))  # fmt: skip
        p = rows.problem(len(places), PIECE + 3, dtype)
        values = np.minimum(p.values, 30.0)
        for i, columns in enumerate(places):
            values[i, list(columns)] = 31.0
        p.logits = rows.stored(values, dtype)
        result = rows.stats(p)
        assert result.outputs["argmax"].tolist() == [min(columns) for columns in places]
        # A target that is impossible, and what that does to the others: nothing.
        values[2, p.targets[2]] = -np.inf
        assert_stats(p, result)
        p.logits = rows.stored(values, dtype)
        result = rows.stats(p)
        assert_stats(p, result)
        assert np.isneginf(result.outputs["logp"]).tolist() == [i == 2 for i in range(p.n)]
        few = rows.stats(p, extras=False)
        for name in few.outputs:
            tolerances.assert_bitwise_equal(few.outputs[name], result.outputs[name])


def wild() -> None:
    """Whatever `rows.wild` thinks of."""
    for seed in range(60):
        p, cuts = rows.wild(seed)
        try:
            both(p, cuts=cuts)
        except Exception as error:
            raise AssertionError(f"rows.wild({seed})") from error


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        shapes, chains, masks, errors, scaling, layout, cut_tiles, far, alone, orders, extras, wild,
    )
}  # fmt: skip
