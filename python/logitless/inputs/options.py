"""Options that travel together, checked once at the public function and then trusted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from logitless.inputs.checks import flag, is_tensor, plain_fields, positive, require, shown, whole
from logitless.inputs.records import changed

# Of given logits; and what the head ops drop with tail_mass > 0.
STATISTICS = ("varentropy", "sum_p2", "log_sum_p2", "mean_logit", "entropy_change")
ROW_EXTRAS = (*STATISTICS, "argmax")
DROPPED = ("dropped_mass", "dropped_entropy")
EXTRAS = (*ROW_EXTRAS, *DROPPED)
# Of the whole vocabulary, beside what a sampling mask leaves of it.
FULL = ("kept_mass", "full_logp", "full_entropy")
# Kernels get a softcap between this and its inverse as it is, another one as 1.
_LEAST_CAP = 2.0**-60


@dataclass(frozen=True)
class LogitTransform:
    """The chain from head output to z: z = softcap(logit_scale * (raw + bias)) / temperature.

    The core takes it as z = scale * y, y = softcap(pre * (raw + bias)): without a softcap all of
    the scaling sits in `scale`, applied after the row maximum is subtracted. A softcap far from 1
    does as well: y = tanh of the same argument, which float32 holds whatever the softcap is.
    """

    temperature: Any = 1.0  # float, or an array shaped like targets or [B] or [B, 1], > 0
    softcap: float | None = None
    logit_scale: float = 1.0
    bias: Any = None  # [V] or None

    def __post_init__(self) -> None:
        plain_fields(self, "temperature", "softcap", "logit_scale")
        if self.softcap is not None:
            positive("softcap", self.softcap)
        positive("logit_scale", self.logit_scale)
        if not _per_row(self.temperature):
            positive("temperature", self.temperature)

    def on_rows(self, shape: tuple[int, ...]) -> LogitTransform:
        """With a temperature per sequence, [B] or [B, 1], as one per token [B, T]."""
        t = self.temperature
        if isinstance(t, (int, float)) or tuple(t.shape) == shape:
            return self
        column = t.reshape(-1, 1)
        each = column.expand(shape) if is_tensor(t) else np.broadcast_to(column, shape)
        return changed(self, temperature=each)

    def on_packed(self, cu_seqlens: Any, targets: Any) -> LogitTransform:
        """With a temperature per packed sequence, [B] or [B, 1], as one per token of targets [N];
        what is no such temperature is checked elsewhere."""
        t, ends, shape = self.temperature, _shape(cu_seqlens), _shape(targets)
        if isinstance(t, (int, float)) or len(ends) != 1 or len(shape) != 1 or _shape(t) == shape:
            return self
        number = ends[0] - 1
        alike = is_tensor(t) == is_tensor(cu_seqlens)
        if not alike or _shape(t) not in ((number,), (number, 1)):
            return self
        each = t.reshape(-1)[_sequence_of_token(cu_seqlens, shape[0], t)]
        return changed(self, temperature=each)

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


def _shape(x: Any) -> tuple[int, ...]:
    # a nested tensor has none
    return () if getattr(x, "is_nested", False) else tuple(getattr(x, "shape", ()))


def _sequence_of_token(cu_seqlens: Any, tokens: int, like: Any) -> Any:
    """[tokens] the number of each token's sequence, where `like` is."""
    last = cu_seqlens.shape[0] - 2
    if not is_tensor(cu_seqlens):
        return np.searchsorted(cu_seqlens[1:], np.arange(tokens), side="right").clip(max=last)
    import torch

    places = torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    found = torch.searchsorted(cu_seqlens[1:].contiguous(), places, right=True)
    return found.clamp(max=last).to(like.device)


def _per_row(temperature: Any) -> bool:
    """Whether it is an array of one number per row."""
    if type(temperature) is float:
        return False
    array = is_tensor(temperature) or isinstance(temperature, np.ndarray)
    return array and (getattr(temperature, "is_nested", False) or temperature.ndim > 0)


def check_names(argument: str, names: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    """Known names only; a bare string is a likely slip."""
    if not isinstance(names, (tuple, list, set, frozenset)):
        raise TypeError(f"{argument} must be a tuple of names, got {shown(names)}")
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise ValueError(
                f"{argument}: unknown name {shown(name)}, expected some of {', '.join(known)}"
            )
    return tuple(names)


def check_extras(
    extras: tuple[str, ...], *, known: tuple[str, ...] = EXTRAS, sets: bool = False
) -> tuple[str, ...]:
    """`sets`: whether the call has a sampling mask."""
    if type(extras) is tuple and not extras:
        return ()
    names = check_names("extras", extras, (*known, *FULL))
    for name in names:
        if name in FULL and not sets:
            raise ValueError(f"extras: {name!r} needs a sampling_mask, got None")
    return names


# Of the largest entries of a row: each row keeps a multiple of as many, with tail_mass > 0.
ENTRY_STEP = 64
TAIL_ENTRIES = 512  # unless asked otherwise
MOST_ENTRIES = 1024


class Tail(NamedTuple):
    """What a row may drop, and of how many of its largest entries."""

    mass: float  # 0: exact
    entries: int = TAIL_ENTRIES


EXACT = Tail(0.0)


def check_tail_entries(entries: int) -> int:
    n = whole("tail_entries", entries, least=ENTRY_STEP)
    if n % ENTRY_STEP or n > MOST_ENTRIES:
        raise ValueError(
            f"tail_entries must be a multiple of {ENTRY_STEP} up to {MOST_ENTRIES}, got {n}"
        )
    return n


def check_tail_mass(tail_mass: float) -> None:
    x = require("tail_mass", tail_mass, lambda x: 0 <= x < 1, "in [0, 1)")
    if 0 < x < 1e-5:
        raise ValueError(f"tail_mass must be 0 or >= 1e-5 (less is float32 noise), got {x}")


def check_capacity(active_capacity: int | None, tail_mass: float) -> int:
    """The most rows that may be active; 0: any number."""
    if active_capacity is None:
        return 0
    if tail_mass:
        raise NotImplementedError(
            f"active_capacity with tail_mass is not built, got {shown(active_capacity)}: how many "
            "rows are served from their largest entries the host has to know"
        )
    return whole("active_capacity", active_capacity, least=1)


@dataclass(frozen=True)
class ComputeOptions:
    """How the linear ops compute: memory, precision of the logits, backend."""

    memory_budget: int | str | None = None
    tail_mass: float = 0.0
    logits_dtype: Any = None
    batch_invariant: bool = False
    backend: str = "auto"
    tail_entries: int = TAIL_ENTRIES
    active_capacity: int | None = None

    def __post_init__(self) -> None:
        plain_fields(self, "tail_mass", "tail_entries", "memory_budget", "active_capacity")
        check_tail_mass(self.tail_mass)
        check_tail_entries(self.tail_entries)
        check_capacity(self.active_capacity, self.tail_mass)
        flag("batch_invariant", self.batch_invariant)

    def exact(self) -> ComputeOptions:
        return self if self.tail_mass == 0 else replace(self, tail_mass=0.0)

    @property
    def tail(self) -> Tail:
        return Tail(float(self.tail_mass), int(self.tail_entries))

    @property
    def facts(self) -> tuple[tuple[str, Any], ...]:
        """What must be the same on every rank of vocab_group, where plans must be."""
        return (
            ("memory_budget", str(self.memory_budget)),
            ("logits_dtype", str(self.logits_dtype)),
            ("batch_invariant", self.batch_invariant),
            ("tail_mass", float(self.tail_mass)),
            ("tail_entries", int(self.tail_entries)),
            ("active_capacity", str(self.active_capacity)),
        )
