"""What must hold before anything is timed.

Against the oracle on a few rows: ours may be off by twice what plain torch is in the same dtype,
plus a small floor; others must compute the same thing. Against plain torch on all rows: catches
what a few rows cannot show, such as a chunk dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.case import Expected, Results

ROWS = 8
# A few float32 roundings of numbers up to 20; of gradients and losses a share of the largest.
FLOOR = 1e-5
# Peers keep log-probs and softmax in the dtype of the logits, which costs them two digits.
SAME_THING = {"float32": 2e-3, "bfloat16": 1e-1}
# Between any two on all rows: two roundings of logits to bfloat16 differ by 2^-8 of the largest.
AGREEMENT = {"float32": 1e-3, "bfloat16": 1e-1}
VALUES = ("logp", "entropy", "varentropy", "sum_p2", "entropy_change")


class NotRight(Exception):
    """A contender whose results are not what they must be; it is not timed."""


def errors(results: Results, expected: Expected) -> dict[str, float]:
    """The largest error of each output: absolute in nats, for gradients and losses relative to the
    largest entry of the truth."""
    found = {}
    for name, value in results.items():
        if name in expected:
            truth = np.asarray(expected[name], np.float64)
            error = np.abs(value.detach().double().cpu().numpy() - truth).max()
            found[name] = float(error / scale(name, truth))
    return found


def scale(name: str, truth: Any) -> float:
    return 1.0 if name in VALUES else max(float(np.abs(truth).max()), 1e-30)


def check_oracle(
    kind: str,
    found: Mapping[str, float],
    plain: Mapping[str, float],
    expected: Expected,
    dtype: str,
) -> None:
    if not found:
        raise NotRight("gives nothing that can be checked")
    for name, error in found.items():
        size = float(np.abs(expected[name]).max()) if name in VALUES else 1.0
        share = FLOOR if kind == "ours" else SAME_THING[dtype]
        allowed = share * max(size, 1.0) + (2 * plain.get(name, 0.0) if kind == "ours" else 0.0)
        # Not `error > allowed`, which lets a NaN through.
        if not error <= allowed:
            raise NotRight(f"{name} is off by {error:.2e}, allowed {allowed:.2e}")


def check_agreement(
    results: Results, plain: Results, dtype: str, random: tuple[str, ...] = ()
) -> None:
    for name, value in results.items():
        # A gradient depends on whether there is an entropy; the oracle has judged it.
        comparable = name not in random and ("entropy" in results or not name.startswith("d"))
        if name not in plain or not comparable:
            continue
        want = plain[name].detach()
        error = float((value.detach().to(want.dtype) - want).abs().max())
        allowed = AGREEMENT[dtype] * max(float(want.abs().max()), 1e-30)
        if not error <= allowed:
            raise NotRight(
                f"{name} differs from plain torch by {error:.2e} on all rows, allowed {allowed:.2e}"
            )
