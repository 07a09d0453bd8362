"""Typed arguments of an op: their schema, and the flat list that torch passes on."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any

import torch
from torch import Tensor

# An int that torch.compile may leave open, where another int is a constant of the graph.
Symbol = Annotated[int, "SymInt"]
Symbols = Annotated[list[int], "SymInt[]"]
# A tensor that the op writes to.
Written = Annotated[Tensor, "Tensor(a!)"]
WrittenList = Annotated[list[Tensor], "Tensor(a!)[]"]

_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    list[Tensor]: "Tensor[]",
    bool: "bool",
    list[bool]: "bool[]",
    int: "int",
    list[int]: "int[]",
    float: "float",
    list[float]: "float[]",
    str: "str",
    torch.dtype: "ScalarType",
    Symbol: "SymInt",
    Symbols: "SymInt[]",
    Written: "Tensor(a!)",
    WrittenList: "Tensor(a!)[]",
}


class Layout:
    """Named values, some of them NamedTuples, and the flat list that they make."""

    def __init__(self, hints: dict[str, Any]) -> None:
        self.names = tuple(hints)
        # of each: where it starts in the flat list, where it stops, and its class if it has parts
        self.parts: list[tuple[int, int, Any]] = []
        self.fields: list[tuple[str, Any]] = []
        for name, hint in hints.items():
            start = len(self.fields)
            if _is_named_tuple(hint):
                inner = typing.get_type_hints(hint, include_extras=True)
                self.fields += [(f"{name}.{field}", inner[field]) for field in hint._fields]
                self.parts.append((start, len(self.fields), hint))
            else:
                self.fields.append((name, hint))
                self.parts.append((start, start + 1, None))
        self.nested = any(kind for *_, kind in self.parts)
        self.kind: Any = None

    @classmethod
    def of_results(cls, kind: Any) -> Layout:
        if kind is type(None):
            return cls({})
        if not _is_named_tuple(kind):
            return cls({"": kind})
        layout = cls(typing.get_type_hints(kind, include_extras=True))
        layout.kind = kind
        return layout

    @property
    def schema(self) -> str:
        return ", ".join(
            f"{_schema_type(hint)} {name.replace('.', '_')}" for name, hint in self.fields
        )

    @property
    def returns(self) -> str:
        kinds = [_schema_type(hint) for _, hint in self.fields]
        return kinds[0] if len(kinds) == 1 else f"({', '.join(kinds)})"

    def flat(self, values: Iterable[Any]) -> list[Any]:
        if not self.nested:
            return list(values)
        out: list[Any] = []
        for value, (_, _, kind) in zip(values, self.parts, strict=True):
            if kind is None:
                out.append(value)
            else:
                out.extend(value)
        return out

    def packed(self, flat: Any) -> Any:
        if not self.nested:
            return flat
        return [
            flat[start] if kind is None else kind._make(flat[start:stop])
            for start, stop, kind in self.parts
        ]

    def result(self, flat: Any) -> Any:
        """What the caller of an op gets."""
        return flat if self.kind is None else self.kind(*self.packed(flat))

    def flattened(self, result: Any) -> Any:
        """What a kernel hands to torch."""
        return result if self.kind is None else tuple(self.flat(result))


def _is_named_tuple(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")


def _schema_type(hint: Any) -> str:
    """The schema's word for an annotation; `X | None` is `X?`."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
    options = options or (typing.get_args(hint) if typing.get_origin(hint) is typing.Union else ())
    if type(None) in options:
        (inner,) = (option for option in options if option is not type(None))
        return f"{_schema_type(inner)}?"
    return _SCHEMA_TYPES[hint]
