"""A PolicyLossSpec as text, for the schema of an op: what a compiled graph may hold."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from typing import Any

from logitless.loss.spec import PolicyLossSpec


def encode(spec: PolicyLossSpec) -> str:
    """JSON; each dataclass is [its module in `logitless.loss`, its name, its fields]."""

    def plain(value: Any) -> Any:
        if not dataclasses.is_dataclass(value):
            return value
        names = [field.name for field in dataclasses.fields(value)]
        kind = type(value)
        module = kind.__module__.removeprefix("logitless.loss.")
        return [module, kind.__name__, {name: plain(getattr(value, name)) for name in names}]

    return json.dumps(plain(spec))


@functools.lru_cache(maxsize=64)
def decode(text: str) -> PolicyLossSpec:
    def made(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        module, name, fields = value
        kind = getattr(importlib.import_module(f"logitless.loss.{module}"), name)
        return kind(**{key: made(field) for key, field in fields.items()})

    spec = made(json.loads(text))
    assert isinstance(spec, PolicyLossSpec)
    return spec
