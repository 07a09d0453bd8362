"""Options that travel together, checked once at the public function and then trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

# Of given logits; and what the head ops drop with tail_mass > 0.
ROW_EXTRAS = ("varentropy", "sum_p2", "entropy_change", "argmax")
DROPPED = ("dropped_mass", "dropped_entropy")
EXTRAS = (*ROW_EXTRAS, *DROPPED)
# Kernels get a softcap between this and its inverse as it is, another one as 1.
_LEAST_CAP = 2.0**-60


@dataclass(frozen=True)
class HeadOptions:
    """The chain from head output to z: z = softcap(logit_scale * (raw + bias)) / temperature.

    The core takes it as z = scale * y, y = softcap(pre * (raw + bias)): without a softcap all of
    the scaling sits in `scale`, applied after the row maximum is subtracted. A softcap far from 1
    does as well: y = tanh of the same argument, which float32 holds whatever the softcap is.
    """

    temperature: Any = 1.0  # float, or an array shaped like targets, > 0
    softcap: float | None = None
    logit_scale: float = 1.0
    bias: Any = None  # [V] or None

    def __post_init__(self) -> None:
        if self.softcap is not None:
            _positive("softcap", self.softcap)
        _positive("logit_scale", self.logit_scale)
        if isinstance(self.temperature, (int, float)):
            _positive("temperature", self.temperature)

    @property
    def arrays(self) -> dict[str, Any]:
        """The options that are arrays, by name."""
        per_row = None if isinstance(self.temperature, (int, float)) else self.temperature
        return {"temperature": per_row, "bias": self.bias}

    @property
    def pre(self) -> float:
        if self.softcap is None:
            return 1.0
        scale = float(self.logit_scale)
        return scale if self.cap == self.softcap else scale / float(self.softcap)

    @property
    def cap(self) -> float:
        if self.softcap is None:
            return 0.0
        return float(self.softcap) if _LEAST_CAP <= self.softcap <= 1 / _LEAST_CAP else 1.0

    @property
    def numerator(self) -> float:
        """scale * temperature."""
        return float(self.logit_scale) if self.softcap is None else float(self.softcap) / self.cap


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and > 0, got {value}")


def check_extras(extras: tuple[str, ...], *, known: tuple[str, ...] = EXTRAS) -> tuple[str, ...]:
    """Known names only; a bare string is a likely slip."""
    if isinstance(extras, str):
        raise TypeError(f"extras must be a tuple of names, got the string {extras!r}")
    for name in extras:
        if name not in known:
            raise ValueError(f"extras: unknown name {name!r}, expected some of {', '.join(known)}")
    return tuple(extras)


def check_tail_mass(tail_mass: float) -> None:
    if not 0 <= tail_mass < 1:
        raise ValueError(f"tail_mass must be in [0, 1), got {tail_mass}")
    if 0 < tail_mass < 1e-5:
        raise ValueError(f"tail_mass must be 0 or >= 1e-5 (less is float32 noise), got {tail_mass}")


@dataclass(frozen=True)
class ComputeOptions:
    """How the linear ops compute: memory, precision of the logits, backend."""

    memory_budget: int | str | None = None
    tail_mass: float = 0.0
    logits_dtype: Any = None
    batch_invariant: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_tail_mass(self.tail_mass)

    @property
    def facts(self) -> tuple[tuple[str, Any], ...]:
        """What must be the same on every rank of vocab_group, where plans must be."""
        return (
            ("memory_budget", str(self.memory_budget)),
            ("logits_dtype", str(self.logits_dtype)),
            ("batch_invariant", self.batch_invariant),
            ("tail_mass", float(self.tail_mass)),
        )
