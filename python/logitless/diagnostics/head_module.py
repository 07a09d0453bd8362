"""What a head's module does to hidden states, beside the product with its weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.inputs.checks import shown
from logitless.inputs.options import LogitTransform

# Rows of the weight that are cast to float64 at once: few enough to stay in cache.
_ROWS = 512


class Difference(NamedTuple):
    """Between the module's logits and those of weight and options."""

    largest: float
    # rounding of the plain product in the module's dtype, and what the difference may be
    rounding: float
    allowed: float
    # "" where they are the same but for rounding
    cause: str


def head_arrays(head: Any) -> tuple[Any, Any]:
    """(weight, bias or None) of a module or of a weight itself."""
    if isinstance(head, Tensor):
        return head, None
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"check: head must be a module with .weight, or a weight, got {shown(head)}"
        )
    sharded = any(kind.__name__ == "FSDPModule" for kind in type(head).__mro__)
    if sharded or type(weight).__name__ == "DTensor":
        raise TypeError(
            f"check: head must hold its whole weight, got the sharded {type(head).__name__}: call "
            "check before the model is sharded, or pass logitless.gathered(head.weight), which "
            "says nothing of what the module does beside"
        )
    return weight, getattr(head, "bias", None)


def compare_module(
    head: Any,
    hidden: Tensor,  # [n, H]
    weight: Tensor,  # [V, H]
    options: LogitTransform,
) -> Difference:
    """head(hidden) may be the logits before the options' chain, after softcap and scale, or z."""
    raw = exact_product(hidden, weight)
    return compare_logits(_logits(head, hidden, len(weight)), raw, head, hidden, weight, options)


def compare_logits(
    given: Tensor,  # [n, V]
    raw: Tensor,  # [n, V] float64: exact_product(hidden, weight)
    head: Any,
    hidden: Tensor,  # [n, H]
    weight: Tensor,  # [V, H]
    options: LogitTransform,
) -> Difference:
    """`given` is what the module made of hidden, at one of the stages of `compare_module`."""
    # A float32 head of a 16-bit body casts what it is given.
    plain = torch.nn.functional.linear(hidden.to(weight.dtype), weight)
    rounding = plain.double() - raw
    if options.bias is not None:
        raw = raw + options.bias.double()
    scaled = raw * float(options.logit_scale)
    cap = options.softcap
    capped = scaled if cap is None else cap * torch.tanh(scaled / cap)
    stages = [raw, capped]
    if isinstance(options.temperature, (int, float)):
        stages.append(capped / options.temperature)
    near = _Near(given, rounding)
    best = min(stages, key=near.excess)
    off = float((near.given - best).abs().max())
    worst = float(rounding.abs().max())
    allowed = float(near.allowed(best).max())
    cause = "" if near(best) else _cause(head, near, raw, off)
    return Difference(off, worst, allowed, cause)


def exact_product(hidden: Tensor, weight: Tensor) -> Tensor:  # [n, V] float64
    """In pieces: a float64 copy of a large weight would be gigabytes."""
    pieces = [hidden.double() @ piece.double().t() for piece in weight.split(_ROWS)]
    return torch.cat(pieces, dim=1)


class _Near:
    """Whether logits are the module's but for rounding: each of them, and all on average, which
    shows what is small but everywhere."""

    def __init__(self, given: Tensor, rounding: Tensor) -> None:
        self.given = given.double()
        # What logits are compared with is a float64 product, which rounds as well.
        self.eps = max(torch.finfo(given.dtype).eps, 1e-14)
        self.worst, self.mean = float(rounding.abs().max()), float(rounding.square().mean().sqrt())

    def allowed(self, logits: Tensor) -> Tensor:
        return 2 * self.worst + self.eps * (4 + 2 * logits.abs())

    def excess(self, logits: Tensor) -> float:
        """The difference over what is allowed: at most 1 where they are near."""
        off = self.given - logits
        each = float((off.abs() / self.allowed(logits)).nan_to_num(torch.inf).max())
        mean = 2 * self.mean + 0.5 * self.eps * (1 + float(logits.square().mean().sqrt()))
        return max(each, float(off.square().mean().sqrt().nan_to_num(torch.inf)) / mean)

    def __call__(self, logits: Tensor) -> bool:
        return self.excess(logits) <= 1


def _cause(head: Any, near: _Near, raw: Tensor, off: float) -> str:
    """What makes the module's logits of `raw`, as far as that can be seen."""
    start = f"the module's logits differ from weight and options by up to {off:.2e}: "
    given = near.given
    adapters = adapter_names(head)
    if adapters:
        return start + f"it has an adapter ({', '.join(adapters)}), merge it into the weight"
    scale = float((given * raw).sum() / raw.square().sum().clamp_min(1e-300))
    if scale > 0 and near(raw * scale):
        return start + f"a scale of about {scale:.4g}, pass logit_scale="
    if len(raw) > 1 and near(raw + (given - raw).mean(0)):
        return start + "a bias, pass bias="
    cap = _softcap(given, raw)
    if cap and near(cap * torch.tanh(raw / cap)):
        return start + f"a softcap of about {cap:.3g}, pass softcap="
    return start + (
        "an adapter, a softcap or a scale, or a weight that is not the one it multiplies by; merge "
        "what it adds, or pass softcap=, logit_scale= or bias="
    )


def adapter_names(head: Any) -> list[str]:
    """Parts of the module that adapters are called."""
    parts = {part for name, _ in head.named_modules() for part in name.split(".")}
    return sorted(x for x in parts if "lora" in x.lower() or "adapter" in x.lower())


def _softcap(given: Tensor, raw: Tensor) -> float:
    """c of c tanh(raw / c) at the largest entry; 0 where it is none."""
    at = raw.abs().argmax()
    x, y = abs(float(raw.view(-1)[at])), abs(float(given.reshape(-1)[at]))
    if not 0 < y < x:
        return 0.0
    low, high = y, 1e3 * x
    for _ in range(80):
        c = torch.tensor((low + high) / 2, dtype=torch.float64)
        low, high = (float(c), high) if float(c * torch.tanh(x / c)) < y else (low, float(c))
    return low


def _logits(head: Any, hidden: Tensor, vocab: int) -> Tensor:  # [n, V]
    with torch.no_grad(), evaluating(head):
        try:
            out = head(hidden)
        except Exception as error:
            raise ValueError(
                f"check: head must take hidden {list(hidden.shape)} of {hidden.dtype}, got "
                f"{type(error).__name__} from {type(head).__name__}: {error}"
            ) from error
    out = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", out)
    out = out[0] if isinstance(out, (tuple, list)) and out else out
    if not isinstance(out, Tensor) or not out.is_floating_point():
        kind = out.dtype if isinstance(out, Tensor) else type(out).__name__
        raise TypeError(
            "check: head(hidden) must give logits (a tensor, a tuple that starts with one, or "
            f"something with .logits), got {kind} from {type(head).__name__}"
        )
    n = len(hidden)
    if out.shape[-1:] != (vocab,) or out.numel() != n * vocab:
        raise ValueError(
            f"check: head(hidden) must give [{n}, V] = {[n, vocab]} for weight [V, H], got "
            f"{list(out.shape)} from {type(head).__name__}"
        )
    return out.detach().reshape(n, vocab)


@contextmanager
def evaluating(head: Any) -> Iterator[None]:
    """Without dropout; every module is then as it was."""
    training = [module for module in head.modules() if module.training]
    head.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
