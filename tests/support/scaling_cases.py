"""Temperatures, softcaps and scales at the ends of what float32 holds, and saturated softcaps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from logitless import reference
from tests.support.cases import numpy_chain, to_numpy
from tests.support.tolerances import GRADIENT_ULP, as_float64, dtype_name


class Exact(NamedTuple):
    """Options that are computed as they are; logits are some gaussians times `size`."""

    options: dict[str, Any]
    size: float = 1.0


ROWS, VOCAB = 5, 70
EXACT = {
    "tiny softcap": Exact({"softcap": 1e-20}),
    "tiny softcap, large logits": Exact({"softcap": 1e-29}, 1e30),
    "tiny softcap and temperature": Exact({"softcap": 1e-20, "temperature": 1e-20}),
    "tiny softcap of tiny logits": Exact({"softcap": 1e-29, "temperature": 1e-29}, 1e-29),
    "large softcap": Exact({"softcap": 1e30}),
    "large softcap and temperature": Exact({"softcap": 1e36, "temperature": 1e36}, 1e36),
    "all of it tiny": Exact({"softcap": 1e-300, "temperature": 1e-300, "logit_scale": 1e-300}),
    "all of it large": Exact({"softcap": 1e300, "temperature": 1e300, "logit_scale": 1e300}),
    "scale cancels temperature": Exact({"logit_scale": 1e30, "temperature": 1e30}),
    "both tiny": Exact({"logit_scale": 1e-200, "temperature": 1e-200}),
    "large logits": Exact({"temperature": 1e30}, 1e30),
    "the largest logits": Exact({"temperature": 1e36}, 1e37),
    "tiny logits": Exact({"logit_scale": 1e30}, 1e-30),
    "uniform": Exact({"temperature": 1e36}),
    "one-hot": Exact({"temperature": 1e-10}),
    "temperatures": Exact({"temperature": torch.tensor([1e-5, 1e-2, 1.0, 1e10, 1e36])}),
    "temperatures and a softcap": Exact(
        {"temperature": torch.tensor([0.02, 0.1, 1.0, 1e10, 1e30]), "softcap": 3.0}
    ),
}
# What is said, after the name of the op.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "softcap 1e-300": ({"softcap": 1e-300}, r"logit_scale / softcap must be .*got 1\.0 / 1e-300"),
    "softcap 5e-324": ({"softcap": 5e-324}, r"logit_scale / softcap must be .*/ 5e-324"),
    "softcap 1e-40": ({"softcap": 1e-40}, r"logit_scale / softcap must be .*got 1\.0 / 1e-40"),
    "softcap 1e308": ({"softcap": 1e308}, r"logit_scale / softcap must be .*got 1\.0 / 1e\+308"),
    "softcap and temperature 1e-300": (
        {"softcap": 1e-300, "temperature": 1e-300}, r"logit_scale / softcap must be .*1e-300"
    ),
    "softcap over temperature": (
        {"softcap": 1e20, "temperature": 1e-20}, r"softcap / temperature must be .*1e\+20 / 1e-20"
    ),
    "temperature 1e-40": ({"temperature": 1e-40}, r"logit_scale / temperature must be .*1e-40"),
    "temperature 1e40": ({"temperature": 1e40}, r"logit_scale / temperature must be .*1e\+40"),
    "logit_scale 1e-300": ({"logit_scale": 1e-300}, r"logit_scale / temperature must be .*1e-300"),
    "logit_scale 1e300": ({"logit_scale": 1e300}, r"logit_scale / temperature must be .*1e\+300"),
    "scale over temperature": (
        {"logit_scale": 1e20, "temperature": 1e-20}, r"logit_scale / temperature must be .*1e-20"
    ),
}  # fmt: skip


def problem(
    case: Exact, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits, targets, g_logp, g_entropy."""
    g = torch.Generator().manual_seed(5)
    z = (torch.randn(ROWS, VOCAB, generator=g, dtype=torch.float64) * case.size).to(dtype)
    up = torch.randn(2, ROWS, generator=g)
    return z, torch.randint(VOCAB, (ROWS,), generator=g), up[0], up[1]


def truth(case: Exact, z: torch.Tensor, t: torch.Tensor, *g: torch.Tensor) -> tuple[Any, Any]:
    """(values by name, d(logits)) of the oracle."""
    chain = numpy_chain(case.options)
    values = reference.token_stats(to_numpy(z), t.numpy(), **chain)
    gradient, _ = reference.token_stats_backward(
        to_numpy(z), t.numpy(), g_logp=g[0].numpy(), g_entropy=g[1].numpy(), **chain
    )
    return values, gradient


def assert_exact(case: Exact, z: Any, stats: Any, gradient: Any, expected: Any, right: Any) -> None:
    """Values within 4e-6 and two roundings of z, gradients within 1e-6 of a row's largest."""
    size = np.abs(reference.logits_chain(to_numpy(z), **numpy_chain(case.options))).max(1)
    for name in ("logp", "entropy", "lse"):
        ours = as_float64(getattr(stats, name))
        error = np.abs(ours - expected[name])
        allowed = 4e-6 + 2**-21 * size * (name != "entropy")
        assert (error <= allowed).all(), (name, ours, expected[name])
    ours, largest = as_float64(gradient), np.abs(right).max(1, keepdims=True)
    # a rounding of y moves p by as much of itself, and the smallest gradients of 16 bits are steps
    least = {"float16": 2.0**-24, "bfloat16": 2.0**-126}.get(dtype_name(gradient.dtype), 0)
    noise = np.minimum(2**-20 * size[:, None], 1) * (size < 200)[:, None]
    allowed = (1e-6 + noise) * largest + least
    allowed = allowed + np.abs(right) * GRADIENT_ULP[dtype_name(gradient.dtype)]
    assert np.isfinite(ours).all()
    assert (np.abs(ours - right) <= allowed).all(), (np.abs(ours - right).max(), largest.max())


SATURATED = {"softcap": 3.0, "logit_scale": 0.5}


def saturated(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Logits [1, 2100] with |u| from 0 to 40 in softcap * tanh(u), a target and the arguments u."""
    u = torch.linspace(-40, 40, 2100, dtype=torch.float64)[None]
    z = (u * SATURATED["softcap"] / SATURATED["logit_scale"]).to(dtype)
    return z, torch.tensor([1111]), to_numpy(z)[0] * 0.5 / 3.0


def assert_slopes(z: Any, t: Any, u: Any, gradient: Any) -> None:
    """Every entry of d(logp) within a few roundings of itself: what u rounds to counts twice."""
    right, _ = reference.token_stats_backward(to_numpy(z), t.numpy(), g_logp=1.0, **SATURATED)
    ours, name = as_float64(gradient)[0], dtype_name(gradient.dtype)
    eps = 2**-52 if name == "float64" else 2**-23
    allowed = np.abs(right[0]) * (eps * (16 + 4 * np.abs(u)) + GRADIENT_ULP[name])
    excess = np.abs(ours - right[0]) / (allowed + 1e-38)
    worst = np.argmax(excess)
    assert (excess <= 1).all(), (u[worst], ours[worst], right[0, worst])
