"""What must hold before anything is timed.

Against the oracle on a few rows: anyone may be off by twice what plain torch is in the same dtype
(for a head in bfloat16 that is much: logits of 40 are rounded to 0.25), plus a share of the size of
the truth: a small one for us; for others one that shows that they compute the same thing. Against
plain torch on all rows: catches what a few rows cannot show, such as a chunk dropped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.harness.case import OURS, Expected, Results

ROWS = 8
# A few float32 roundings.
FLOOR = 1e-5
# Triton's interpreter cuts bfloat16 off where the hardware rounds: another half ulp.
INTERPRETED = {"float32": 0.0, "bfloat16": 2.0**-8}
# Some keep log-probs and softmax in the dtype of the logits, which costs them two digits.
SAME_THING = {"float32": 2e-3, "bfloat16": 1e-1}
# An error that even rounding the logits to bfloat16 does not explain.
LARGEST_PLAIN_ERROR = 0.5
# Between any two on all rows: two roundings of logits to bfloat16 differ by 2^-8 of the largest.
AGREEMENT = {"float32": 1e-3, "bfloat16": 1e-1}
# Rows compared at once: the differences of all gradients would be one more tensor of their size.
ROWS_AT_ONCE = 1024
VALUES = ("logp", "entropy", "varentropy", "sum_p2", "entropy_change")


def f64(tensor: Tensor) -> npt.NDArray[np.float64]:
    return tensor.detach().double().cpu().numpy()


def errors(results: Results, expected: Expected) -> dict[str, float]:
    """The largest error of each output: absolute in nats, for gradients and losses relative to the
    largest entry of the truth."""
    found = {}
    for name, value in results.items():
        if name in expected:
            truth = np.asarray(expected[name], np.float64)
            error = np.abs(f64(value) - truth).max()
            found[name] = float(error / scale(name, truth))
    return found


def scale(name: str, truth: Any) -> float:
    return 1.0 if name in VALUES else max(float(np.abs(truth).max()), 1e-30)


def oracle_objection(
    kind: str,
    found: Mapping[str, float],
    plain: Mapping[str, float],
    expected: Expected,
    dtype: str,
    announced: float = 0.0,
) -> str | None:
    """Why someone with the errors `found` is not to be timed, or None. `announced`: what it says
    its gradients may be off by, beside rounding."""
    # Plain torch, the measure of the others, is judged by this alone.
    if any(not error <= LARGEST_PLAIN_ERROR for error in plain.values()):
        return f"plain torch itself is off by {max(plain.values()):.2e}"
    if not found:
        return "gives nothing that can be checked"
    share = FLOOR if kind == OURS else SAME_THING[dtype]
    if os.environ.get("TRITON_INTERPRET") == "1":
        share += INTERPRETED[dtype]
    for name, error in found.items():
        size = float(np.abs(expected[name]).max()) if name in VALUES else 1.0
        allowed = share * max(size, 1.0) + 2 * plain.get(name, 0.0)
        allowed += announced if name.startswith("d") else 0.0
        # Not `error > allowed`, which lets a NaN through.
        if not error <= allowed:
            return f"{name} is off by {error:.2e}, allowed {allowed:.2e}"
    return None


def agreement_objection(
    results: Results,
    plain: Results,
    dtype: str,
    random: tuple[str, ...] = (),
    announced: float = 0.0,
) -> str | None:
    for name, value in results.items():
        # A gradient depends on whether there is an entropy; the oracle has judged it.
        comparable = name not in random and ("entropy" in results or not name.startswith("d"))
        if name not in plain or not comparable:
            continue
        want = plain[name].detach()
        error = largest_difference(value.detach(), want)
        # aminmax and not abs().max(), which needs a tensor of this size.
        largest = float(torch.stack(torch.aminmax(want)).abs().max())
        share = AGREEMENT[dtype] + (announced if name.startswith("d") else 0.0)
        allowed = share * max(largest, 1e-30)
        if not error <= allowed:
            return f"{name} differs from plain torch by {error:.2e} on all rows, not {allowed:.2e}"
    return None


def largest_difference(found: Tensor, want: Tensor) -> float:
    if found.dim() == 0:
        found, want = found[None], want[None]
    parts = zip(found.split(ROWS_AT_ONCE), want.split(ROWS_AT_ONCE), strict=True)
    # The maximum of torch, unlike Python's, is NaN if one of them is.
    return float(torch.stack([(f.to(w.dtype) - w).abs().max() for f, w in parts]).max())
