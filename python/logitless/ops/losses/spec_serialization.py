"""A PolicyLossSpec as text, for the schema of an op: what a compiled graph may hold."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import weakref
from typing import Any

from logitless.loss.spec import PolicyLossSpec

# Losses whose text, or whose object, is not made anew in every call. Their coefficients are data of
# a call and have no part in it, see `PolicyLossSpec.identity`.
KNOWN = 256
# By text, while they live: a user's own part may have more than its fields.
_ALIVE: weakref.WeakValueDictionary[str, PolicyLossSpec] = weakref.WeakValueDictionary()
# Classes that no import finds, as those of a function, by id.
_LOCAL: weakref.WeakValueDictionary[int, type] = weakref.WeakValueDictionary()


@functools.lru_cache(maxsize=KNOWN)
def encode(spec: PolicyLossSpec) -> str:
    """JSON; each dataclass is {"is": [its module, its name], "with": its fields}, and one that no
    import finds has its id after the name."""
    text = json.dumps(_plain(spec))
    _ALIVE[text] = spec
    return text


def decode(text: str) -> PolicyLossSpec:
    return _ALIVE.get(text) or _decoded(text)


@functools.lru_cache(maxsize=KNOWN)
def _decoded(text: str) -> PolicyLossSpec:
    spec = _made(json.loads(text))
    assert isinstance(spec, PolicyLossSpec)
    return spec


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(x) for x in value]
    if not dataclasses.is_dataclass(value):
        return value
    parts = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    kind: Any = type(value)
    name = [kind.__module__, kind.__qualname__]
    if _imported(*name) is not kind:
        name.append(id(kind))
        _LOCAL[id(kind)] = kind
    return {"is": name, "with": parts}


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_made(x) for x in value)
    if not isinstance(value, dict):
        return value
    kind = _LOCAL[value["is"][2]] if len(value["is"]) > 2 else _imported(*value["is"])
    return kind(**{key: _made(field) for key, field in value["with"].items()})


def _imported(module: str, name: str) -> Any:
    """None where there is no such class."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
