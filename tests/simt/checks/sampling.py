"""Checks of the emulated kernels that draw against the oracle in float64, without torch: see
__init__.py."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.simt import problem as rows
from tests.simt.oracle import oracle
from tests.simt.problem import Array, Problem, tiles

BLOCK = 2048
TRUNCATED = 2**20 - 1
SEED, STEP, LOW = 2**63 + 11, 2**42 + 5, 2**32 - 1


def module() -> Any:
    return rows.module


def ids_of(n: int) -> Array:
    return np.arange(n) * 2**40 - 5


def numbers(row_id: int, block: int) -> tuple[float, float]:
    """Two uniform numbers in (0, 1) of a row and a block."""
    place, row_id = 1 << 63 | STEP << 20 | block, row_id % 2**64
    words = oracle("selection").philox(
        (row_id & LOW, row_id >> 32, place & LOW, place >> 32), (SEED & LOW, SEED >> 32)
    )
    pairs = (words[:2], words[2:])
    high, low = (((a << 21 ^ b >> 11) + 0.5) * 2.0**-53 for a, b in pairs)
    return high, low


def z_of(p: Problem) -> Array:
    z: Array = oracle("rows").logits_chain(p.values, **p.options)
    return z


def token_of(z: Array, row_id: int) -> int:
    """The block with the largest log-sum-exp and noise, and in it the inverse of the CDF."""
    best, token = -math.inf, -1
    for block in range(-(-len(z) // BLOCK)):
        part = z[block * BLOCK : (block + 1) * BLOCK]
        if not np.isfinite(part).any():
            continue
        u, inside = numbers(row_id, block)
        weights = np.exp(part - part.max())
        score = part.max() + math.log(weights.sum()) - math.log(-math.log(u))
        if score > best:
            cdf = np.cumsum(weights)
            best, token = score, block * BLOCK + int((cdf > inside * cdf[-1]).argmax())
    return token


def drawn(p: Problem, cuts: tuple[int, ...] = ()) -> tuple[Array, Array, Array]:
    """(token, score, y) by the kernels."""
    of_rows, state, best = p.rows(), np.full((p.n, 8), 7.0), np.full((p.n, 2), np.nan)
    for tile in tiles(p.vocab, cuts):
        part = p.logits[..., tile]
        size = module().cuda_workspace_bytes(p.n, part.shape[-1])
        module().cuda_sample(
            of_rows, rows.exported(part, p.dtype), state, best,
            workspace=np.full(size, 0xFF, np.uint8), row_ids=ids_of(p.n), seed=SEED, step=STEP,
            start=tile.start, first=tile.start == 0,
        )  # fmt: skip
    assert (np.delete(state, 6, 1) == 7).all()
    return best[:, 1].astype(np.int64), best[:, 0], state[:, 6]


def draws() -> None:
    """The oracle's token of every row, and its logit."""
    for dtype, kind in (("float32", "plain"), ("bfloat16", "all"), ("float16", "row_temperature")):
        for n, vocab in ((0, 7), (3, 1), (5, 127), (6, BLOCK), (9, 2 * BLOCK + 3)):
            p = rows.problem(n, vocab, dtype, kind, seed=vocab)
            z, (token, _, y) = z_of(p), drawn(p)
            assert token.tolist() == [token_of(z[i], i * 2**40 - 5) for i in range(n)]
            if kind != "all":
                assert (y == p.values[np.arange(n), token]).all()


def draw_tiles() -> None:
    """Tiles of whole blocks, and rows that start anywhere, change no bit."""
    for dtype in ("float32", "bfloat16"):
        p = rows.problem(4, 2 * BLOCK + 60, dtype, "bias")
        whole = drawn(p)
        moved = [Problem(dtype, rows.at_offset(p.logits, shift), p.targets, p.options)
                 for shift in (1, 3)]  # fmt: skip
        for q, cuts in ((p, (BLOCK,)), (p, (BLOCK, 2 * BLOCK)), *((q, ()) for q in moved)):
            for one, other in zip(drawn(q, cuts), whole, strict=True):
                assert (one == other).all()


def draw_bad_rows() -> None:
    """-inf, a NaN or a +inf in a block leave it out, and the others alone."""
    p = rows.problem(5, BLOCK + 9, "float32", seed=3)
    values = p.values
    values[0], values[1, :BLOCK], values[2, 5], values[3, 6] = -np.inf, -np.inf, np.nan, np.inf
    values[4] = -np.inf
    values[4, BLOCK + 8] = -50.0
    p.logits = rows.stored(values, "float32")
    token, score, _ = drawn(p)
    assert token[0] == -1 and np.isneginf(score[0])
    assert (token[1:4] >= BLOCK).all() and token[4] == BLOCK + 8


def in_order(z: Array) -> Array:
    return np.argsort(-z, kind="stable")


def truncated_draws() -> None:
    """The oracle's set of every row, and its token; masses beyond one slab, tokens of each."""
    # No share of a row of equal logits is exactly one of these.
    limits: tuple[dict[str, Any], ...] = (
        {"top_k": 3}, {"top_p": 0.69}, {"min_p": 0.02},
        {"top_k": 30, "top_p": 0.61, "min_p": 0.01}, {"top_p": 0.97},
    )  # fmt: skip
    probabilities = oracle("truncated").truncated_probabilities
    for dtype, kind, n, vocab in (("float32", "row_temperature", 3, 70), ("bfloat16", "bias", 2, 9),
                                  ("float16", "softcap", 2, 131), ("float32", "plain", 1, 1),
                                  ("bfloat16", "temperature", 4, 1403)):  # fmt: skip
        p = rows.problem(n, vocab, dtype, kind, seed=vocab)
        slabs = vocab > 1024
        if slabs:
            p.logits = rows.stored(p.values / 8, dtype)
        z = z_of(p)
        # Slabs are sorted slowly here: those of the largest set alone.
        for truncation in limits[-1:] if slabs else limits:
            found = truncated(p, truncation)
            share = probabilities(p.values, **truncation, **p.options)
            for i in range(n):
                order = in_order(z[i])
                order = order[share[i][order] > 0]
                assert found["sets"][i] == sorted(order.tolist()), (vocab, truncation, i)
                cdf = np.cumsum(np.exp(z[i][order] - z[i].max()))
                u, _ = numbers(i * 2**40 - 5, TRUNCATED)
                assert found["token"][i] == order[int((cdf > u * cdf[-1]).argmax())]
                logp = math.log(share[i][found["token"][i]])
                assert abs(found["kept_logp"][i] - logp) < 2e-6, (logp, found["kept_logp"][i])


def truncated(p: Problem, truncation: dict[str, Any]) -> dict[str, Any]:
    """What the kernels draw, and from which sets."""
    size = module().cuda_workspace_bytes(p.n, p.vocab)
    state, bits = np.full((p.n, 8), 7.0), np.full((p.n, -(-p.vocab // 8)), 0x5A, np.uint8)
    out = {"set_sizes": np.full(p.n, -3), "kept_logp": np.full(p.n, 7, np.float32)}
    token = np.full(p.n, -3)
    module().cuda_draw_truncated(
        p.rows(), rows.exported(p.logits, p.dtype), state, token,
        workspace=np.full(size, 0xFF, np.uint8), **{"top_k": 0, "top_p": 1.0, "min_p": 0.0,
        **truncation}, set_bits=bits, row_ids=ids_of(p.n), seed=SEED, step=STEP, **out,
    )  # fmt: skip
    assert (np.delete(state, 6, 1) == 7).all()
    flags = np.unpackbits(bits, axis=1, bitorder="little")
    assert not flags[:, p.vocab :].any()
    sets = [np.flatnonzero(row).tolist() for row in flags]
    assert out["set_sizes"].tolist() == list(map(len, sets))
    return {"token": token, "sets": sets, "state": state, **out}


def truncated_bad_rows() -> None:
    p = rows.problem(4, 40, "float32", seed=5)
    values = p.values
    values[0], values[1, 3], values[2, 4] = -np.inf, np.nan, np.inf
    p.logits = rows.stored(values, "float32")
    found = truncated(p, {"top_k": 2})
    assert found["token"][:3].tolist() == [0, 0, 0]
    assert found["sets"][:3] == [[], [], []] and len(found["sets"][3]) == 2
    assert np.isnan(found["kept_logp"][:3]).all() and np.isfinite(found["kept_logp"][3])
    assert found["state"][:3, 6].tolist() == [7.0] * 3


def draw_far() -> None:
    """Offsets beyond 2^31 elements."""
    p = rows.problem(3, 300, "float32")
    for near, far in zip(drawn(p), drawn(rows.far(p)), strict=True):
        np.testing.assert_array_equal(far, near)
    for near, far in zip(*(truncated(x, {"top_k": 9}).values() for x in (p, rows.far(p))),
                         strict=True):  # fmt: skip
        np.testing.assert_array_equal(far, near)


def draw_orders() -> None:
    """The order in which threads and blocks come changes no bit."""
    p = rows.problem(2, 1203, "bfloat16", "bias")
    p.logits = rows.stored(p.values / 6, "bfloat16")
    seen = []
    for seed in range(3):
        os.environ["LOGITLESS_SIMT_SEED"] = str(seed)
        found = truncated(p, {"top_p": 0.95})
        seen.append((drawn(p), found))
    for one, two in seen[1:]:
        assert all((a == b).all() for a, b in zip(one, seen[0][0], strict=True))
        assert two["sets"] == seen[0][1]["sets"]
        assert two["kept_logp"].tobytes() == seen[0][1]["kept_logp"].tobytes()
        assert (two["token"] == seen[0][1]["token"]).all()


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        draws, draw_tiles, draw_bad_rows, truncated_draws, truncated_bad_rows, draw_far,
        draw_orders,
    )
}  # fmt: skip
