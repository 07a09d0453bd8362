"""A PolicyLossSpec as text, for the schema of an op: what a compiled graph may hold."""

from __future__ import annotations

import dataclasses
import importlib
import json
from typing import Any

from logitless.loss.spec import PolicyLossSpec

# What was encoded in this process: a user's own part need not be importable by its name.
_SPECS: dict[str, PolicyLossSpec] = {}
_TEXTS: dict[PolicyLossSpec, str] = {}


def encode(spec: PolicyLossSpec) -> str:
    """JSON; each dataclass is {"is": [its module, its name], "with": its fields}."""

    if spec in _TEXTS:
        return _TEXTS[spec]

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(x) for x in value]
        if not dataclasses.is_dataclass(value):
            return value
        names = [field.name for field in dataclasses.fields(value)]
        kind = type(value)
        parts = {name: plain(getattr(value, name)) for name in names}
        return {"is": [kind.__module__, kind.__qualname__], "with": parts}

    text = json.dumps(plain(spec))
    known = _SPECS.setdefault(text, spec)
    if known != spec:
        # two local classes of one name
        text = json.dumps([plain(spec), id(spec)])
        _SPECS[text] = spec
    _TEXTS[spec] = text
    return text


def decode(text: str) -> PolicyLossSpec:
    if text in _SPECS:
        return _SPECS[text]

    def made(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(made(x) for x in value)
        if not isinstance(value, dict):
            return value
        module, name = value["is"]
        kind = getattr(importlib.import_module(module), name)
        return kind(**{key: made(field) for key, field in value["with"].items()})

    spec = made(json.loads(text))
    assert isinstance(spec, PolicyLossSpec)
    return _SPECS.setdefault(text, spec)
