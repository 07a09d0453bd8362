"""Every key of a recipe as text: for `logitless recipe` and for docs/recipe.md."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from logitless import tables
from logitless.rl.recipe.keys import REQUIRED, Range
from logitless.rl.recipe.schema import Recipe

# What stands for the name of a method, and for a default.
NAME, MUST = "NAME", "must be given"


class Row(NamedTuple):
    key: str
    kind: str
    default: str
    allowed: str
    about: str


def rows(section: type[Any] = Recipe, path: str = "") -> Iterator[Row]:
    """The keys of a section, each followed by the keys inside of it."""
    hints = get_type_hints(section)
    for known in fields(section):
        hint, name = hints[known.name], f"{path}{known.name}"
        inner, below = parts_of(hint, name)
        about = known.metadata.get("about") or " ".join((inner.__doc__ or "").split())
        yield Row(name, kind_of(hint), default_of(known), allowed_of(known, hint), about)
        if inner is not None:
            yield from rows(inner, f"{below}.")


def parts_of(hint: Any, name: str) -> tuple[Any, str]:
    """The dataclass of a key's parts and how they begin; None where it has no parts."""
    if is_dataclass(hint):
        return hint, name
    if get_origin(hint) is dict and is_dataclass(inner := get_args(hint)[1]):
        return inner, f"{name}.{NAME}"
    if get_origin(hint) in (Union, types.UnionType):
        return next(filter(is_dataclass, get_args(hint)), None), name
    return None, name


def kind_of(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(kind_of, inner))
    if origin is list:
        return f"list of {kind_of(inner[0])}"
    if origin is dict or is_dataclass(hint):
        return "mapping"
    if origin is Literal:
        return "text"
    return {str: "text", type(None): "null"}.get(hint) or str(hint.__name__)


def default_of(known: Field[Any]) -> str:
    """As YAML has it; of a section its keys' own."""
    if "about" not in known.metadata:
        return ""
    if known.default is not REQUIRED:
        return written(known.default)
    made = known.default_factory
    return MUST if made is REQUIRED else written(made())


def written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def allowed_of(known: Field[Any], hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(get_args(hint))
    allowed = known.metadata.get("allowed", "")
    return allowed.text if isinstance(allowed, Range) else allowed


def text() -> str:
    """A key, its type, default and range, and what it does."""
    found = [(row.key, (", ".join(filter(None, row[1:4])), row.about)) for row in rows()]
    return tables.listed(found)


def markdown() -> str:
    """docs/recipe.md."""
    lines = [(code(row.key), row.kind, code(row.default), row.allowed, row.about) for row in rows()]
    table = tables.markdown(("key", "type", "default", "allowed", "what it does"), lines)
    return "\n".join([_HEAD, *table]) + "\n"


def code(cell: str) -> str:
    return cell if cell in ("", MUST) else f"`{cell}`"


_HEAD = """\
# Keys of a recipe

Made by `logitless recipe --markdown`; a test compares. A recipe is a YAML file of these keys, and
`logitless train RECIPE key=value` changes any of them, like `update.body_lr=1e-5` or
`methods.grpo.change.surrogate.high=0.28`. A value of another type, out of its range or of an
unknown key is an error that names the key, before anything is written. [trainer.md](trainer.md)
says how the keys are used, [losses.md](losses.md) and [advantages.md](advantages.md) list losses
and advantages.
"""
