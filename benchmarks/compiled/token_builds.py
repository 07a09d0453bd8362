"""Calls of the token kernels for `triton_builds`: every choice of a loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch

INF = float("inf")


def plain_loss(surrogate: str = "clip", **choices: Any) -> SimpleNamespace:
    """What never changes about a loss, as `LossParams` names it."""
    fields: dict[str, Any] = {
        "surrogate": surrogate, "constants": (0.5, 0.5, 2.0, 2.0), "ratio_low": 0.8,
        "ratio_high": 1.2, "log_low": -0.22, "log_high": 0.18, "ratio_dual": INF, "log_dual": INF,
        "positive": 1.0, "negative": 1.0, "control": "none", "penalty_estimator": "none",
        "penalty_straight_through": False, "kl_estimator": "none", "kl_straight_through": False,
        "kl_weight": "none", "entropy_target": 0.0,
    }  # fmt: skip
    return SimpleNamespace(**fields | choices)


def _trust(kind: int) -> SimpleNamespace:
    return plain_loss("trust_mask", constants=(0.1, 0.1, 2.0, float(kind)))


# Choices of a loss, each with one that the other kernels of it do not have.
LOSSES: dict[str, SimpleNamespace] = {
    name: plain_loss(name)
    for name in ("clip", "reinforce", "none", "cispo", "sapo", "dro", "vespo", "bounded", "dcpo",
                 "aspo", "precomputed")
} | {f"trust_mask, {kind}": _trust(kind) for kind in range(4)}  # fmt: skip
LOSSES |= {
    "clip, k1": plain_loss(kl_estimator="k1"),
    "clip, k2, drop": plain_loss(kl_estimator="k2", control="drop_selected"),
    "clip, abs, keep": plain_loss(kl_estimator="abs", control="keep_selected"),
    "clip, k3, penalty": plain_loss(
        kl_estimator="k3", kl_straight_through=True, kl_weight="score",
        control="penalise_selected", penalty_estimator="k3", penalty_straight_through=True,
    ),
}  # fmt: skip
# With every array and every number that a loss may have, in registers at once.
ALL = plain_loss(
    "vespo", kl_estimator="low_var", kl_weight="ratio", control="penalise_selected",
    penalty_estimator="low_var", entropy_target=0.5,
)  # fmt: skip


def call_loss(
    n: int, params: SimpleNamespace, dtype: torch.dtype, everything: bool, package: str
) -> None:
    """A loss of n tokens, its sums and its metrics."""
    kernel = kernels_of(f"{package}.loss")
    x, wide = torch.zeros(n, dtype=dtype), torch.zeros(n, dtype=torch.float64)
    kernel("exp_values")(wide, wide)
    mask, number = x == 0, torch.zeros((), dtype=torch.float64)
    some = x if everything else None
    each = wide if everything else None
    terms: dict[str, Any] = {
        "weights": wide if everything else number, "old_logp": x, "kl_logp": x,
        "penalty_logp": x, "selected": None if params.control == "none" else mask,
        "log_ratio": each, "factor": each, "precomputed_loss": wide, "precomputed_slope": wide,
        "mean_advantage": number, "mean_logp": number, "grad_scale": 1.0,
        "entropy_coefficient": number if everything else 0.1, "kl_coefficient": 0.1,
        "penalty_coefficient": 0.1, "log_low": number if everything else None,
        "log_high": 0.1 if everything else None,
    }  # fmt: skip
    if params.kl_estimator == "none":
        terms["kl_logp"] = None
    if params.surrogate != "precomputed":
        terms |= {"precomputed_loss": None, "precomputed_slope": None}
    module = import_module(f"{package}.loss.token_loss")
    parts = torch.zeros(module.ADDED, module.programs_of(n), dtype=torch.float64)
    tokens = SimpleNamespace(logp=x, advantages=x, mask=mask, entropy=some)
    flag = torch.tensor([2**63 - 1])
    kernel("token_loss")(
        tokens, params, SimpleNamespace(**terms), g_logp=x, g_entropy=some, g_policy=each,
        parts=parts, flag=flag,
    )  # fmt: skip
    sums = torch.zeros(module.ADDED + 3, dtype=torch.float64)
    kernel("loss_sums")(parts, sums)
    for total in (3, flag[0], number):
        kernel("loss_outputs")(
            sums, ((1, True), (3, False)), total, loss=x[0], metrics=torch.zeros(2)
        )


def call_sums(n: int, dtype: torch.dtype, centred: bool, package: str) -> None:
    """Exact sums of tokens, or of their covariances, the means, and tokens that are flagged."""
    kernel, x = kernels_of(f"{package}.sums"), torch.zeros(n, dtype=dtype)
    module = import_module(f"{package}.sums.exact_sums")
    number, flag = torch.zeros((), dtype=torch.float64), torch.tensor([2**63 - 1])
    products = torch.zeros(n, dtype=torch.float64)
    centre = module.Centre(number, number, 1.0, products) if centred else None
    words = torch.zeros(module.words_of(centred), dtype=torch.int64)
    kernel("exact_sums")(x, x, x == 0, words=words, flag=flag, centre=centre)
    kernel("exact_means")(words, centred=centred, out=products)
    kernels_of(package)("flag_bad")(flag, x == 0, torch.arange(n) if centred else None)


def call_tokens(
    n: int,
    vocab: int,
    dtype: torch.dtype,
    options: frozenset[str] = frozenset(),
    *,
    package: str = "logitless.kernels",
) -> None:
    """Sums and a loss; with all options the one that has everything. Tokens have no logits, and are
    float32 or float64."""
    wide, room = torch.float64 if "chain" in options else torch.float32, f"{package}.tokens"
    call_sums(n, wide, "chain" in options, room)
    call_loss(n, ALL if "chain" in options else LOSSES["clip"], wide, "chain" in options, room)


def token_calls(package: str = "logitless.kernels") -> dict[str, Callable[[], None]]:
    """Configuration -> a call of kernels that nothing else has."""
    room, calls = f"{package}.tokens", dict[str, Callable[[], None]]()
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        for sums, centred in ((name, False), (f"{name}, covariance", True)):
            calls[sums] = functools.partial(call_sums, 4, dtype, centred, room)
        calls[f"{name}, all"] = functools.partial(call_loss, 4, ALL, dtype, True, room)
    for name, params in LOSSES.items():
        calls[name] = functools.partial(call_loss, 4, params, torch.float32, False, room)
    return calls


def kernels_of(room: str) -> Callable[[str], Callable[..., None]]:
    """The launcher of a file of a room."""
    return lambda name: getattr(import_module(f"{room}.{name}"), name)
