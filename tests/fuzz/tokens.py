"""Valid calls of what works on tokens: the losses, the selection, random numbers; and the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.case import Case
from tests.fuzz.memory import Rng
from tests.fuzz.rows import maybe

LEVELS, BINS = 16, 256


def count(rng: Rng) -> int:
    """About a step or a block of the token kernels, and nothing."""
    return int(
        rng.choice([0, rng.integers(1, 40), rng.integers(250, 260), rng.integers(4090, 4110)])
    )


def threads(rng: Rng) -> int:
    return int(rng.integers(0, 4))


def loss_params(core: Any, rng: Rng) -> Case:
    return Case("tokens.LossParams.__init__", _params(core, rng))


def _params(core: Any, rng: Rng) -> dict[str, Any]:
    estimators = [core.tokens.KlEstimator(int(rng.integers(6))) for _ in range(2)]
    return {
        "surrogate": core.tokens.Surrogate(int(rng.integers(12))),
        "constants": tuple(rng.uniform(0.1, 2, int(rng.integers(5)))),
        "ratio_low": 0.8, "ratio_high": 1.2, "log_low": -0.2, "log_high": 0.2,
        "ratio_dual": 3.0, "log_dual": 1.1,
        "positive": float(rng.choice([1, 0.5])), "negative": 1.0,
        "control": core.tokens.Control(int(rng.integers(4))),
        "penalty_estimator": estimators[0], "penalty_straight_through": bool(rng.integers(2)),
        "kl_estimator": estimators[1], "kl_straight_through": bool(rng.integers(2)),
        "kl_weight": core.tokens.KlWeight(int(rng.integers(3))), "entropy_target": 0.0,
    }  # fmt: skip


def token_loss(core: Any, rng: Rng) -> Case:
    n, real = count(rng), str(rng.choice(["f4", "f8"]))

    def numbers(dtype: str = real) -> Any:
        return rng.normal(0, 0.3, n).astype(dtype)

    weighted = bool(rng.integers(2))
    arguments = {
        "logp": numbers(), "old_logp": maybe(rng, numbers()), "advantages": numbers(),
        "weights": rng.uniform(0, 1, n) if weighted else None,
        "entropy": maybe(rng, numbers()), "kl_logp": maybe(rng, numbers()),
        "selected": maybe(rng, rng.random(n) < 0.3), "g_logp": np.zeros(n, real),
        "g_entropy": maybe(rng, np.zeros(n, real)),
        "mean_advantage": 0.1, "mean_logp": -1.0, "grad_scale": 1.0,
        "entropy_coefficient": float(rng.choice([0, 0.1])),
        "kl_coefficient": float(rng.choice([0, 0.1])), "penalty_coefficient": 0.1,
        "log_low": maybe(rng, -0.3), "log_high": maybe(rng, 0.4),
        "params": core.tokens.LossParams(**_params(core, rng)),
        "sums": np.zeros(core.tokens.LOSS_SUMS),
        "mask": None if weighted else rng.random(n) < 0.8, "weight": 0.01,
        "penalty_logp": numbers(),
        "log_ratio": maybe(rng, numbers("f8")), "factor": maybe(rng, rng.uniform(0, 1, n)),
        "precomputed_loss": numbers("f8"), "precomputed_slope": numbers("f8"),
        "g_policy": maybe(rng, np.zeros(n)), "threads": threads(rng),
    }  # fmt: skip
    return Case("tokens.token_loss", arguments, ("g_logp", "g_entropy", "g_policy", "sums"))


def exp(core: Any, rng: Rng) -> Case:
    n = count(rng)
    values = {"x": rng.normal(0, 300, n), "out": np.zeros(n), "threads": threads(rng)}
    return Case("tokens.exp", values, ("out",))


def exp2(core: Any, rng: Rng) -> Case:
    n = 64 * int(rng.integers(4))
    values = {"t": -rng.exponential(20, n).astype(np.float32), "out": np.zeros(n, np.float32)}
    return Case("rows.exp2", values, ("out",))


def _tokens(rng: Rng) -> dict[str, Any]:
    n, real = count(rng), str(rng.choice(["f4", "f8"]))
    return {
        "logp": rng.normal(-1, 1, n).astype(real),
        "advantages": rng.normal(0, 1, n).astype(real),
        "mask": rng.random(n) < 0.8,
    }


def value_sums(core: Any, rng: Rng) -> Case:
    values = {
        **_tokens(rng),
        "sums": np.zeros(core.tokens.SUM_WORDS, np.int64),
        "threads": threads(rng),
    }
    return Case("tokens.value_sums", values, ("sums",))


def value_means(core: Any, rng: Rng) -> Case:
    words = rng.integers(-(2**40), 2**40, core.tokens.SUM_WORDS)
    words[-1] = rng.integers(0, 2**40)
    return Case("tokens.value_means", {"sums": words}, ())


def _ids(rng: Rng, n: int) -> Any:
    return np.arange(n) + 7 if rng.integers(2) else rng.permutation(3 * n)[:n]


def covariance_candidates(core: Any, rng: Rng) -> Case:
    tokens = _tokens(rng)
    n = tokens["logp"].size
    band = {"mean_advantage": 0.0, "mean_logp": -1.0, "low": -1.0, "high": 1.0,
            "log_low": -0.2, "log_high": 0.2}  # fmt: skip
    values = {
        **tokens, "old_logp": maybe(rng, tokens["logp"] + tokens["logp"].dtype.type(0.1)),
        "ids": _ids(rng, n), "band": band, "most": int(rng.integers(0, n + 1)),
        "scores": np.zeros(n, np.int64), "out_ids": np.zeros(n, np.int64), "threads": threads(rng),
    }  # fmt: skip
    return Case("tokens.covariance_candidates", values, ("scores", "out_ids"))


def ordered_scores(core: Any, rng: Rng) -> Case:
    n = count(rng)
    values = {
        "values": rng.normal(size=n),
        "scores": np.zeros(n, np.int64),
        "threads": threads(rng),
    }
    return Case("tokens.ordered_scores", values, ("scores",))


def random_scores(core: Any, rng: Rng) -> Case:
    n = count(rng)
    values = {
        "ids": _ids(rng, n), "seed": int(rng.integers(2**62)), "step": 3,
        "scores": np.zeros(n, np.int64), "threads": threads(rng),
    }  # fmt: skip
    return Case("tokens.random_scores", values, ("scores",))


def radix_histogram(core: Any, rng: Rng) -> Case:
    n = count(rng)
    values = {
        "scores": rng.integers(-(2**62), 2**62, n), "ids": _ids(rng, n), "prefix_score": 0,
        "prefix_inverted_id": 0, "level": int(rng.integers(LEVELS)),
        "bins": np.zeros(BINS, np.int64), "threads": threads(rng),
    }  # fmt: skip
    return Case("tokens.radix_histogram", values, ("bins",))


def repeated_id(core: Any, rng: Rng) -> Case:
    n = count(rng)
    values = {"ids": _ids(rng, n), "mask": rng.random(n) < 0.8, "threads": threads(rng)}
    return Case("tokens.repeated_id", values)


def members(core: Any, rng: Rng) -> Case:
    n = count(rng)
    ids = _ids(rng, n)
    some = np.sort(ids[rng.random(n) < 0.2])
    values = {"ids": ids, "sorted": some, "out": np.zeros(n, bool), "threads": threads(rng)}
    return Case("tokens.members", values, ("out",))


def philox(core: Any, rng: Rng) -> Case:
    return Case("tokens.philox", {key: int(rng.integers(2**62)) for key in ("x", "y", "seed")})


def transpose(core: Any, rng: Rng) -> Case:
    n, width = (int(rng.choice([0, rng.integers(1, 9), rng.integers(30, 70)])) for _ in range(2))
    tile = rng.normal(size=(n, width)).astype(np.float16)
    values = {"tile": tile, "out": np.zeros((width, n), np.float16), "threads": threads(rng)}
    return Case("rows.transpose", values, ("out",))


def memory(core: Any, rng: Rng) -> Case:
    return Case("runtime.Memory.__init__", {"bytes": int(rng.choice([0, 1, 5000, 3 << 20]))})


def enumeration(name: str) -> Callable[[Any, Rng], Case]:
    return lambda core, rng: Case(f"{name}.__init__", {"value": 0})


def without_arguments(name: str) -> Callable[[Any, Rng], Case]:
    return lambda core, rng: Case(name, {})


MAKERS: dict[str, Callable[[Any, Rng], Case]] = {
    "tokens.token_loss": token_loss,
    "tokens.LossParams.__init__": loss_params,
    "tokens.exp": exp,
    "rows.exp2": exp2,
    "tokens.value_sums": value_sums,
    "tokens.value_means": value_means,
    "tokens.covariance_candidates": covariance_candidates,
    "tokens.ordered_scores": ordered_scores,
    "tokens.random_scores": random_scores,
    "tokens.radix_histogram": radix_histogram,
    "tokens.repeated_id": repeated_id,
    "tokens.members": members,
    "tokens.philox": philox,
    "rows.transpose": transpose,
    "runtime.Memory.__init__": memory,
    "runtime.default_threads": lambda core, rng: Case(
        "runtime.default_threads", {"otherwise": int(rng.integers(0, 9))}
    ),
    "runtime.cuda_device_reason": lambda core, rng: Case(
        "runtime.cuda_device_reason", {"device": 0}
    ),
    **{
        f"tokens.{name}.__init__": enumeration(f"tokens.{name}")
        for name in ("Control", "KlEstimator", "KlWeight", "Surrogate")
    },
    **{
        name: without_arguments(name)
        for name in (
            "runtime.build_info", "runtime.pool_is_lost", "runtime.pool_may_be_lost",
            "runtime.release_memory", "runtime.spare_bytes", "runtime.widest_team",
            "rows.prefer_transposed_gemm",
        )
    },
}  # fmt: skip
