"""What the compiled core says to wrong arguments, one of each kind; fuzz/ tries them at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from logitless import _core
from logitless.backends.token_kernels.protocol import SUMS

N = 4


def states(n: int = N) -> Any:
    return np.zeros((n, 8))


def rows(n: int = N, **options: Any) -> Any:
    return _core.rows.Rows(n, targets=np.zeros(n, np.int64), **options)


def tile(n: int = N, width: int = 100, dtype: Any = np.float32) -> Any:
    return np.zeros((n, width), dtype)


def topk(n: int = N, capacity: int = 4, **changed: Any) -> Any:
    arrays = {
        "values": np.zeros((n, capacity)), "ids": np.zeros((n, capacity), np.int32),
        "threshold": np.zeros(n), "count": np.zeros(n, np.int64), "margin": float("inf"),
    }  # fmt: skip
    return _core.topk.TopK(**{**arrays, **changed})


def draw(state: Any, token: Any, **changed: Any) -> Any:
    key = {"row_ids": np.zeros(1, np.int64), "seed": 1, "step": 1}
    options = {"top_k": 0, "top_p": 1.0, "logits": tile(1), **key}
    return _core.sampling.draw_truncated(_core.rows.Rows(1), state, token, **{**options, **changed})


def sparse(**changed: Any) -> dict[str, Any]:
    arrays = {
        "offsets": np.array([0, 2, 3]), "columns": np.array([0, 1, 1], np.int32),
        "values": np.ones(3, np.float32), "names": np.array([0, 1], np.int32),
    }  # fmt: skip
    return {**arrays, **changed}


def multiply(**changed: Any) -> Any:
    dense, out = np.zeros((2, 5), np.float32), np.zeros((2, 5), np.float32)
    return _core.topk.sparse_multiply(**{**sparse(), "dense": dense, "out": out, **changed})


def good(n: int = 1) -> Any:
    """States of rows with something in them."""
    state = states(n)
    state[:, 1] = 1
    return state


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    # dtypes, in threads or not
    "integer logits": (
        lambda: rows(64, threads=4).forward(tile(64, dtype=np.int32), states(64)),
        "logits.*int32",
    ),
    "integer logits of a sample": (
        lambda: _core.sampling.sample(
            rows(),
            tile(dtype=np.int64),
            states(),
            np.zeros((N, 2)),
            row_ids=np.zeros(N, np.int64),
            seed=1,
            step=1,
        ),
        "logits.*int64",
    ),
    "integer logits to draw from": (
        lambda: draw(good(), np.zeros(1, np.int64), logits=tile(1, dtype=np.uint8)),
        "logits.*uint8",
    ),
    "integer gradient": (
        lambda: rows().gradient(tile(), states(), tile(dtype=np.int32)),
        "gradient.*int32",
    ),
    "integer dense": (lambda: multiply(dense=np.zeros((2, 5), np.int32)), "dense.*int32"),
    "integer out": (lambda: multiply(out=np.zeros((2, 5), np.int32)), "out.*int32"),
    "wide dense of narrow values": (lambda: multiply(dense=np.zeros((2, 5))), "float64"),
    "integer logp": (
        lambda: _core.tokens.value_sums(
            np.zeros(3, np.int64),
            np.zeros(3),
            np.ones(3, bool),
            np.zeros(_core.tokens.SUM_WORDS, np.int64),
        ),
        "logp.*int64",
    ),
    "state of floats": (
        lambda: rows().forward(tile(), states().astype(np.float32)),
        "state.*float32",
    ),
    "bytes to turn": (
        lambda: _core.rows.transpose(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)),
        "tile.*uint8",
    ),
    # sizes
    "narrow gradient": (
        lambda: rows().gradient(tile(width=2000), states(), tile(width=10), g_logp=np.ones(N)),
        "gradient.*2000.*10",
    ),
    "wide gradient": (
        lambda: rows().gradient(tile(width=10), states(), tile(width=11), g_logp=np.ones(N)),
        "gradient.*10.*11",
    ),
    "rows that wrap": (lambda: _core.rows.Rows(2**61).merge(np.zeros(0), np.zeros(0)), "n must be"),
    "rows without memory": (
        lambda: _core.rows.Rows(2**50).merge(np.zeros((0, 2**50, 8)), np.zeros(0)),
        "state",
    ),
    "negative rows": (lambda: _core.rows.Rows(-1), "n must be.*-1"),
    "parts of other rows": (
        lambda: _core.rows.Rows(2).merge(np.zeros((1, 3, 8)), states(2)),
        "parts",
    ),
    "workspace that wraps": (
        lambda: _core.rows.CudaRows.workspace_bytes(2**40, 2**40, 2),
        "larger",
    ),
    "short out": (lambda: _core.tokens.exp(np.zeros(3), np.zeros(2)), "out must hold 3"),
    "no scratch": (
        lambda: _core.topk.sparse_transpose(
            np.zeros(1, np.int64),
            np.zeros(0, np.int32),
            np.zeros(0, np.float32),
            row_names=np.zeros(0, np.int32),
            scratch=np.zeros(0, np.int32),
            out_offsets=np.zeros(1, np.int64),
            out_names=np.zeros(0, np.int32),
            out_columns=np.zeros(0, np.int32),
            out_values=np.zeros(0, np.float32),
        ),
        "scratch",
    ),
    "memory beyond addresses": (lambda: _core.runtime.Memory(2**63 - 1), "bytes"),
    # numbers
    "negative threads": (lambda: rows(threads=-1), "threads.*-1"),
    "threads beyond reason": (lambda: _core.tokens.exp(np.zeros(3), np.zeros(3), 2**30), "threads"),
    "negative start": (lambda: rows().forward(tile(), states(), start=-2048), "start.*-2048"),
    "start that wraps": (lambda: rows().forward(tile(), states(), start=2**63 - 2048), "start"),
    "bias ends early": (
        lambda: rows(bias=np.zeros(99, np.float32)).forward(tile(), states()),
        "bias",
    ),
    "scale of nan": (lambda: rows(scale=float("nan")), "scale.*nan"),
    "softcap below 0": (lambda: rows(softcap=-1.0), "softcap.*-1"),
    "negative vocab": (
        lambda: rows().finalize(
            states(), -1, logp=np.zeros(N), entropy=np.zeros(N), lse=np.zeros(N)
        ),
        "vocab.*-1",
    ),
    "step beyond its bits": (lambda: draw(good(), np.zeros(1, np.int64), step=2**43), "step"),
    "negative top_k": (lambda: draw(good(), np.zeros(1, np.int64), top_k=-1), "top_k.*-1"),
    "top_p of 0": (lambda: draw(good(), np.zeros(1, np.int64), top_p=0.0), "top_p"),
    "top_p of nan": (lambda: draw(good(), np.zeros(1, np.int64), top_p=float("nan")), "top_p"),
    "ids beyond sampling": (
        lambda: _core.sampling.sample(
            rows(),
            tile(),
            states(),
            np.zeros((N, 2)),
            row_ids=np.zeros(N, np.int64),
            seed=1,
            step=1,
            start=2**31,
        ),
        "sampling",
    ),
    "level": (
        lambda: _core.tokens.radix_histogram(
            np.zeros(1, np.int64), np.zeros(1, np.int64), 0, 0, 16, np.zeros(256, np.int64)
        ),
        "level",
    ),
    "negative most": (
        lambda: _core.tokens.covariance_candidates(
            np.zeros(1),
            np.zeros(1),
            np.ones(1, bool),
            None,
            np.zeros(1, np.int64),
            dict.fromkeys(
                ("mean_advantage", "mean_logp", "low", "high", "log_low", "log_high"), 0.0
            ),
            -1,
            np.zeros(1, np.int64),
            np.zeros(1, np.int64),
        ),
        "most",
    ),
    # order and range
    "unsorted members": (
        lambda: _core.tokens.members(
            np.arange(100, 356), np.array([150, 160, -(10**12)]), np.zeros(256, bool)
        ),
        "sorted",
    ),
    "descending offsets": (lambda: multiply(offsets=np.array([0, 3, 2])), "offsets"),
    "offsets from 1": (lambda: multiply(offsets=np.array([1, 2, 3])), "offsets"),
    "column beyond dense": (lambda: multiply(columns=np.array([0, 2, 1], np.int32)), "columns.*2"),
    "negative column": (lambda: multiply(columns=np.array([0, -1, 1], np.int32)), "columns.*-1"),
    "row beyond out": (lambda: multiply(names=np.array([0, 2], np.int32)), "names.*2"),
    "one row twice": (lambda: multiply(names=np.array([1, 1], np.int32)), "names.*1"),
    "count above the capacity": (
        lambda: _core.topk.finalize(rows(), states(), topk(count=np.full(N, 10**7))),
        "count.*10000000",
    ),
    "count below 0": (
        lambda: _core.topk.finalize(rows(), states(), topk(count=np.full(N, -1))),
        "count.*-1",
    ),
    "count of one that is not finalized": (
        lambda: _core.topk.measure(
            rows(),
            good(N),
            topk(count=np.full(N, 3)),
            dropped_mass=np.zeros(N),
            dropped_entropy=np.zeros(N),
            wider=np.zeros(N, bool),
            step=64,
            most=64,
            enough=0.1,
            slack=0.0,
        ),
        "count.*3",
    ),
    "count above the capacity of a later tile": (
        lambda: rows().forward(tile(), states(), first=False, topk=topk(count=np.full(N, 5))),
        "count.*5",
    ),
    "nan among the kept": (
        lambda: _core.topk.finalize(
            rows(), states(), topk(values=np.full((N, 4), np.nan), count=np.full(N, 4))
        ),
        "NaN",
    ),
    "target beyond ids": (
        lambda: _core.topk.measure(
            _core.rows.Rows(1, targets=np.array([2**31])),
            good(),
            topk(1),
            dropped_mass=np.zeros(1),
            dropped_entropy=np.zeros(1),
            wider=np.zeros(1, bool),
            step=64,
            most=64,
            enough=0.1,
            slack=0.0,
        ),
        "targets",
    ),
    "argmax from nowhere": (
        lambda: rows(1).finalize(
            np.array([[0, 1, 0, 0, 0, 0, 0, 1e300]]),
            5,
            logp=np.zeros(1),
            entropy=np.zeros(1),
            lse=np.zeros(1),
            argmax=np.zeros(1, np.int64),
        ),
        "argmax",
    ),
    "row without a logit to draw": (
        lambda: draw(good(), np.zeros(1, np.int64), logits=np.full((1, 8), -np.inf, np.float32)),
        "no finite logit",
    ),
    "nothing kept to draw": (
        lambda: draw(good(), np.zeros(1, np.int64), logits=None, topk=topk(1)),
        "nothing to draw",
    ),
    # memory
    "out is the input": (lambda: _core.tokens.exp(*[np.zeros(3)] * 2), "out.*share memory with x"),
    "half of out is the input": (
        lambda: (lambda x: _core.tokens.exp(x[:64], x[32:96]))(np.zeros(96)),
        "out.*share memory",
    ),
    "gradient beside its tile": (
        lambda: (lambda x: rows().gradient(x[:, :100], states(), x[:, 50:150]))(tile(width=150)),
        "gradient.*share memory",
    ),
    "state among the outputs": (
        lambda: (
            lambda s: rows(1).finalize(s, 5, logp=s[0, :1], entropy=np.zeros(1), lse=np.zeros(1))
        )(good()),
        "logp.*share memory",
    ),
    "gradient with one row for all": (
        lambda: rows().gradient(
            tile(), states(), np.lib.stride_tricks.as_strided(tile(1), (N, 100), (0, 4))
        ),
        "gradient.*twice",
    ),
    "gradient of windows": (
        lambda: rows().gradient(
            tile(), states(), np.lib.stride_tricks.as_strided(tile(2), (N, 100), (4, 4))
        ),
        "gradient.*twice",
    ),
    "misaligned input": (
        lambda: _core.tokens.exp(np.frombuffer(bytes(25), np.float64, 3, 1), np.zeros(3)),
        "x must be aligned",
    ),
    "misaligned output": (
        lambda: _core.tokens.exp(np.zeros(3), np.frombuffer(bytearray(25), np.float64, 3, 1)),
        "out must be aligned",
    ),
    "misaligned logits": (
        lambda: rows().forward(
            np.frombuffer(bytes(1 + 4 * 400), np.float32, 400, 1).reshape(N, 100), states()
        ),
        "logits must be aligned",
    ),
    "field of a record": (
        lambda: _core.tokens.exp(np.zeros(3, "u1,f8")["f1"], np.zeros(3)),
        "multiple of itemsize",
    ),
    "an output that is none": (
        lambda: rows().finalize(
            states(), 100, logp=None, entropy=None, lse=None, perplexity=np.zeros(N)
        ),
        "finalize has no output named perplexity",
    ),
    # choices
    "a surrogate that is none": (
        lambda: token_loss(surrogate=_core.tokens.Surrogate(77)),
        "surrogate",
    ),
    "a control that is none": (lambda: token_loss(control=_core.tokens.Control(9)), "control"),
    "a field that is missing": (lambda: token_loss(without="ratio_low"), "ratio_low: "),
    "a field of another kind": (lambda: token_loss(log_dual="much"), "log_dual='much'"),
    "too many constants": (lambda: token_loss(constants=(1.0,) * 5), "constants"),
}


def token_loss(*, without: str = "", **changed: Any) -> Any:
    numbers = dict.fromkeys(
        ("ratio_low", "ratio_high", "log_low", "log_high", "ratio_dual", "log_dual", "positive",
         "negative", "entropy_target"), 1.0,
    )  # fmt: skip
    none = _core.tokens.KlEstimator.none
    fields: dict[str, Any] = {
        **numbers, "surrogate": _core.tokens.Surrogate.__members__["clip"], "constants": (),
        "control": _core.tokens.Control.none, "penalty_estimator": none,
        "penalty_straight_through": False, "kl_estimator": none, "kl_straight_through": False,
        "kl_weight": _core.tokens.KlWeight.none, **changed,
    }  # fmt: skip
    fields.pop(without, None)
    sums = np.zeros(_core.tokens.LOSS_SUMS)
    _core.tokens.token_loss(
        logp=np.zeros(3), old_logp=None, advantages=np.ones(3), weights=np.ones(3), entropy=None,
        kl_logp=None, selected=None, g_logp=np.zeros(3), g_entropy=None, mean_advantage=0.0,
        mean_logp=0.0, grad_scale=1.0, entropy_coefficient=0.0, kl_coefficient=0.0,
        penalty_coefficient=0.0, params=_core.tokens.LossParams(**fields), sums=sums,
    )  # fmt: skip
    return dict(zip(SUMS, sums.tolist(), strict=True))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name: str) -> None:
    call, words = WRONG[name]
    with pytest.raises((ValueError, TypeError, BufferError), match=words):
        call()


def test_what_is_right_is_taken() -> None:
    """The helpers above are right where nothing is changed."""
    assert token_loss()["bad_token"] == -1
    multiply()
    _core.topk.finalize(rows(), states(), topk())
    token = np.full(1, -5)
    draw(good(), token)
    assert 0 <= token[0] < 100
    x = tile()
    s = states()
    rows().forward(x, s)
    rows().gradient(x, s, x)
