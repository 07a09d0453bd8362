"""What torch.compile needs to be told while it traces: which numbers a graph is for.

A graph serves any length where nothing is decided by one. A size or an option that the caller
changes is a symbol there: torch's guards then say for which values the graph holds. All of this is
for `torch.compiler.is_compiling()` alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from logitless.loss.spec import Correction, PolicyLossSpec, Reinforce
from logitless.ops.losses.spec_serialization import encode
from logitless.ops.symbols import fixed


def identity_text(spec: PolicyLossSpec) -> str:
    """`encode` of a spec's identity; while torch.compile traces, a constant and a guard on every
    field but those that are data."""
    if not torch.compiler.is_compiling():
        return encode(spec.identity)
    text: str = _text_of_parts(_parts(spec))
    return text


def correction_text(correction: Correction) -> str:
    """The same of a spec that has this correction."""
    text: str = _text_of_correction(_parts(correction))
    return text


def _parts(value: Any) -> Any:
    """A dataclass as (its class, its fields): torch 2.11 takes no frozen dataclass for a constant,
    and from tuples all versions see what to guard on."""
    if isinstance(value, tuple):
        return ("tuple", *[_parts(x) for x in value])
    if not dataclasses.is_dataclass(value):
        return fixed(value)
    kind: Any = type(value)
    names = tuple(kind.__dataclass_fields__)
    moves = getattr(kind, "moves", "")
    return (kind, names, *[0.0 if x == moves else _parts(getattr(value, x)) for x in names])


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _text_of_parts(parts: Any) -> str:
    return encode(_made(parts))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _text_of_correction(parts: Any) -> str:
    return encode(PolicyLossSpec(ratio="none", surrogate=Reinforce(), correction=_made(parts)))


def _made(parts: Any) -> Any:
    if not isinstance(parts, tuple):
        return parts
    if parts[0] == "tuple":
        return tuple(_made(x) for x in parts[1:])
    kind, names, *fields = parts
    return kind(**{name: _made(x) for name, x in zip(names, fields, strict=True)})
