"""From plain YAML values to typed dataclasses: the one place where a recipe's values change form.

An error names the key, the value that came and the type that was expected. An unknown key is an
error that suggests the nearest known one.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def build(kind: type[Any], tree: Mapping[str, Any], path: str = "", base: Any = None) -> Any:
    """The dataclass `kind` from a mapping; `path` is for errors.

    A field that the mapping lacks has its default, or with `base` (an instance) the value of
    `base`: a changed copy, like `dataclasses.replace` at any depth.
    """
    hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    for key in tree:
        if key not in known:
            names = [_join(path, name) for name in known]
            raise ValueError(unknown("recipe key", _join(path, key), names))
    values = {
        key: convert(hints[key], value, _join(path, key), getattr(base, key, None))
        for key, value in tree.items()
    }
    if base is not None:
        return replace(base, **values)
    for key in _required(kind):
        if key not in tree:
            raise ValueError(f"recipe key '{_join(path, key)}' is missing")
    return kind(**values)


def _required(kind: Any) -> Iterable[str]:
    """The names of fields without a default."""
    for field in fields(kind):
        if field.default is MISSING and field.default_factory is MISSING:
            yield field.name


def convert(hint: Any, value: Any, path: str, base: Any = None) -> Any:
    """`value` as the type `hint`; `base` is the value that it replaces, if there is one."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(value, Mapping) and is_dataclass(base):
        return build(type(base), value, path, base)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _of_union(inner, value, path, base)
    if origin is Literal:
        if value not in inner:
            raise _mismatch(path, f"one of {', '.join(map(repr, inner))}", value)
        return value
    if origin is dict or is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _mismatch(path, "a mapping", value)
        if is_dataclass(hint):
            return build(hint, value, path)  # type: ignore[arg-type]
        return {str(k): convert(inner[1], v, _join(path, k)) for k, v in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise _mismatch(path, "a list", value)
        return [convert(inner[0], v, f"{path}[{i}]") for i, v in enumerate(value)]
    if hint is float and type(value) is int:
        # An integer above 1e308 stays one, and is refused below.
        with suppress(OverflowError):
            value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _mismatch(path, hint.__name__, value)
    return value


def _of_union(hints: tuple[Any, ...], value: Any, path: str, base: Any) -> Any:
    """None, or the one other type; of several dataclasses the only one that has the given keys, or
    the only one of them that must be given one."""
    if value is None and type(None) in hints:
        return None
    hints = tuple(hint for hint in hints if hint is not type(None))
    if len(hints) > 1:
        if not isinstance(value, Mapping):
            raise _mismatch(path, "a mapping", value)
        kinds = filter(is_dataclass, hints)
        hints = tuple(k for k in kinds if set(value) <= {field.name for field in fields(k)})
        if len(hints) > 1:
            hints = tuple(k for k in hints if set(value) & set(_required(k)))
    if len(hints) != 1:
        raise ValueError(f"recipe key '{path}' is {base!r} in this preset: no parts to change")
    return convert(hints[0], value, path)


def unknown(what: str, key: str, known: Iterable[str]) -> str:
    """The message for a name that is not among `known`."""
    known, key = list(known), key if len(key) <= 200 else f"{key[:200]}..."
    # what all have in common, like a section's name, makes nothing near
    own = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key.rpartition(".")[2], own, n=1)
    if near:
        return f"{what} '{key}' is unknown; did you mean '{own[near[0]]}'?"
    return f"{what} '{key}' is unknown, known: {', '.join(known)}"


def shown(value: Any) -> str:
    """A value for a message; `yaml_text.parse` bounds its whole length."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _mismatch(path: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"recipe key '{path}' must be {expected}, got {shown(value)}")


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
