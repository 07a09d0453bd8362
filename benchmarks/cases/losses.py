"""Policy losses of given log-probs: inputs, truth, floors, bytes and FLOPs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.cases import calls
from benchmarks.cases.inputs import TokenInputs, token_inputs
from benchmarks.cases.specs import CLIP_CONTROL, CLIP_COV, KL_COV, SPEC
from benchmarks.harness.case import Call, Case, Expected, Op, Oracle, Results
from benchmarks.harness.correctness import f64
from logitless import reference

STAT_BYTES = 4


def loss_and_slope(logp: npt.NDArray[Any], x: TokenInputs) -> tuple[Any, npt.NDArray[Any]]:
    data = (f64(x.old_logp), f64(x.advantages), x.mask.cpu().numpy())
    loss, _, slope, _ = reference.policy_loss(logp, *data, SPEC)
    return np.array(loss), slope


def loss_oracle(x: TokenInputs) -> Oracle:
    loss, slope = loss_and_slope(f64(x.logp), x)
    return lambda _: {"loss": loss, "dlogp": slope}


def kl_cov_oracle(x: TokenInputs) -> Oracle:
    data = (f64(x.old_logp), f64(x.advantages), x.mask.cpu().numpy())
    loss, _, slope, _ = reference.policy_loss(f64(x.logp), *data, KL_COV)
    return lambda _: {"loss": np.array(loss), "dlogp": slope}


def clip_cov_oracle(x: TokenInputs) -> Oracle:
    """Any tokens of the band may be drawn, so that a few slopes differ from one to the next: they
    are those where the result has 0, and must be as many as there should be."""
    data = (f64(x.old_logp), f64(x.advantages), x.mask.cpu().numpy())
    free = replace(CLIP_COV, control=None)
    logp, a = f64(x.logp), data[1]
    loss, _, slope, _ = reference.policy_loss(logp, *data, free)
    cov = (a - a.mean()) * (logp - logp.mean())
    inside = (cov > CLIP_CONTROL.low) & (cov < CLIP_CONTROL.high) & (slope != 0)
    number = min(max(int(CLIP_CONTROL.fraction * len(logp)), 1), int(inside.sum()))

    def expected(results: Results) -> Expected:
        dropped = inside & (f64(results["dlogp"]) == 0)
        if dropped.sum() != number:
            raise ValueError(f"clip cov: {dropped.sum()} tokens dropped, expected {number}")
        # the policy term of an unclipped token is its own slope
        return {
            "loss": np.array(loss - slope[dropped].sum()),
            "dlogp": np.where(dropped, 0.0, slope),
        }

    return expected


def selection_bytes(s: Case) -> dict[str, int]:
    return {**loss_bytes(s), "read logp, advantages for the means, then for the covariances":
            4 * s.rows * STAT_BYTES}  # fmt: skip


def loss_floor(x: TokenInputs) -> dict[str, Call]:
    out = torch.empty_like(x.logp)

    def run(_: None) -> Results:
        return {"sum": torch.add(x.logp, x.old_logp, out=out).mul_(x.advantages)}

    return {"two passes": Call(run)}


def loss_bytes(s: Case) -> dict[str, int]:
    return {
        "read logp, old_logp, advantages": 3 * s.rows * STAT_BYTES,
        "read mask": s.rows,
        "write dlogp": s.rows * STAT_BYTES,
    }


def loss_op(name: str, **parts: Any) -> Op:
    return Op(name, "losses", inputs=token_inputs, call=calls.loss_both, shape=loss_shape, **parts)


def loss_shape(s: Case) -> str:
    return f"N={s.rows} float32"


OPS = [
    loss_op(
        "policy loss", families=("loss",),
        oracle=loss_oracle, floors=loss_floor, bytes=loss_bytes,
        # A token's ratio, clip, dual clip, weight and slope; the exp counts as one.
        flops=lambda s: 15.0 * s.rows,
    ),
    loss_op(
        "clip cov loss", families=("clip cov",), oracle=clip_cov_oracle,
        floors=loss_floor, bytes=selection_bytes, flops=lambda s: 20.0 * s.rows,
        random=("loss", "dlogp"),
    ),
    loss_op(
        "kl cov loss", families=("kl cov",),
        oracle=kl_cov_oracle, floors=loss_floor, bytes=selection_bytes,
        # And its covariance, and a digit of its key.
        flops=lambda s: 20.0 * s.rows,
    ),
]  # fmt: skip
