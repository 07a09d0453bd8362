"""What a model does to the product of its head: measured on logits that it is handed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The least rows of `ramp`: zeros, where a chain is linear, where a softcap is all there is; and
# then values of all sizes between.
ROWS = 8
SMALL, LARGE = 1e-9, 1e9
# A number of the chain that is known no better than this would change logits more than float32.
PRECISE = 1e-5


class Unexplained(ValueError):
    """A chain that softcap and logit_scale are not."""


class Chain(NamedTuple):
    """logits = softcap(logit_scale * z), of the first `vocab` columns of z."""

    softcap: float | None
    logit_scale: float
    vocab: int

    def __call__(self, z: Tensor) -> Tensor:
        scaled = z[..., : self.vocab] * self.logit_scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


def ramp(rows: int, vocab: int, device: Any) -> Tensor:  # [rows, V] float64
    """No two entries alike, so that a column that is moved or scaled for itself shows."""
    generator = torch.Generator().manual_seed(0)
    shape = (rows, vocab)
    z = 10.0 ** torch.empty(shape, dtype=torch.float64).uniform_(-3, 3, generator=generator)
    z = torch.where(torch.rand(shape, generator=generator) < 0.5, -z, z)
    sizes = torch.empty(2, vocab, dtype=torch.float64).uniform_(1, 2, generator=generator)
    z[0], z[1], z[2] = 0.0, SMALL * sizes[0], LARGE * sizes[1]
    return z.to(device)


def fit(
    z: Tensor,  # [rows, V]
    logits: Tensor,  # [rows, W]
    numbers: Collection[float],
) -> Chain:
    """The chain that makes these logits of `ramp`; its numbers are the config's where they fit."""
    y = logits.double()
    eps = _resolution(y)
    vocab = y.shape[1]
    if vocab > z.shape[1]:
        raise Unexplained(f"its logits have {vocab} columns, its head's weight {z.shape[1]} rows")
    z = z[:, :vocab]
    if not bool(y.isfinite().all()):
        bad = int((~y.isfinite()).any(dim=0).sum())
        raise Unexplained(f"{bad} of {vocab} columns are not finite after the head")
    if bool(y[0].any()):
        worst = float(y[0].abs().max())
        raise Unexplained(f"up to {worst:.3g} is added to the logits after the head")
    slopes = y[1] / z[1]
    low, high, slope = float(slopes.min()), float(slopes.max()), float(slopes.mean())
    if not low > 0:
        raise Unexplained(f"the head's output is multiplied by {low:.4g}, which is not positive")
    if high - low > 8 * eps * high:
        raise Unexplained(
            f"after the head each column has a scale of its own, {low:.4g} to {high:.4g}, or is "
            "another column"
        )
    scale = _number("scale", slope, eps, numbers)
    end = float(y[2].mean())
    linear = abs(end / float(z[2].mean()) / slope - 1) < 1e-2
    chain = Chain(None if linear else _number("softcap", end, eps, numbers), scale, vocab)
    expected = chain(z)
    off = ((y - expected).abs() / expected.abs().clamp_min(1e-300))[1:]
    # A tanh in the logits' dtype and the roundings beside it.
    wrong = off > 16 * eps + 1e-12
    if bool(wrong.any()):
        at = int(off.argmax()) + vocab
        value, given, closest = (float(x.reshape(-1)[at]) for x in (z, y, expected))
        raise Unexplained(
            f"what follows its head is no scale and softcap, in {int(wrong.any(dim=0).sum())} of "
            f"{vocab} columns: {value:.4g} becomes {given:.6g}, not {closest:.6g}"
        )
    return chain


def _resolution(y: Tensor) -> float:
    """The eps of the coarsest dtype that all of it was rounded to on its way."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if torch.equal(y.to(dtype).double(), y):
            return torch.finfo(dtype).eps
    return torch.finfo(torch.float64).eps


def _number(name: str, measured: float, eps: float, numbers: Collection[float]) -> float:
    """The number that a config names, or its inverse, where the measurement cannot tell."""
    known = {x for number in numbers if number for x in (number, 1 / number)}
    known.add(1.0)
    near = sorted(x for x in known if abs(x - measured) <= 4 * eps * measured)
    if len(near) == 1 or (near and eps <= PRECISE):
        return min(near, key=lambda x: abs(x - measured))
    if eps > PRECISE:
        raise Unexplained(
            f"its {name} of about {measured:.4g} is only known to {eps:.1g} in the dtype of its "
            "logits, and its config has no number for it: load the model in float32"
        )
    return measured


def config_numbers(config: Any) -> Iterator[float]:
    """Numbers that a config and the configs in it have."""
    content = config.to_dict() if hasattr(config, "to_dict") else config
    values = content.values() if isinstance(content, dict) else [content]
    for value in values:
        if isinstance(value, dict):
            yield from config_numbers(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield float(value)
