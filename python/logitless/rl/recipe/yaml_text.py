"""YAML to plain values, in time and memory that the length of the text bounds.

An alias repeats a value at no cost, and nested aliases repeat it a billion times: copying or
printing such a value never ends. So the size of the value with its aliases written out is counted
first.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import yaml

# Limits: characters of a recipe; characters and values once all aliases are written out; levels of
# nesting; digits of a number.
LONGEST, LARGEST, DEEPEST, DIGITS = 1 << 18, 1 << 20, 32, 400
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers of YAML 1.2: 3e-5 is one; YAML 1.1 wants a dot and a sign."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse(text: str, name: str) -> Any:
    """yaml.safe_load; `name` is for errors. ValueError where the text is no YAML, or too large."""
    if len(text) > LONGEST:
        raise ValueError(f"{name} must have at most {LONGEST} characters, got {len(text)}")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _Sizes(name).of(node, 0)
        return _constructed(loader, node, name)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} must be YAML: {' '.join(str(error).split())[:400]}") from None
    except RecursionError:
        raise ValueError(_too_deep(name)) from None
    finally:
        loader.dispose()


def _constructed(loader: Any, node: Any, name: str) -> Any:
    try:
        return loader.construct_document(node)
    # A tag that its value contradicts, like !!int abc, raises whatever the loader met.
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} must be YAML, got a value that is none: {error}") from None


def as_yaml(recipe: Any) -> str:
    """A dataclass as text that `parse` reads."""
    text: str = yaml.safe_dump(
        asdict(recipe), sort_keys=False, allow_unicode=True, default_flow_style=False, width=100
    )
    return text


class _Sizes:
    """Sizes of nodes with their aliases written out, each node counted once."""

    def __init__(self, name: str) -> None:
        self.name = name
        # None: the node is being counted; an alias to it from within would be endless.
        self.known: dict[int, tuple[int, int] | None] = {}

    def of(self, node: Any, level: int) -> tuple[int, int]:
        """(size, levels below)."""
        if isinstance(node.value, str):
            if node.tag in NUMBERS and len(node.value) > DIGITS:
                raise ValueError(f"{self.name} must have numbers of at most {DIGITS} digits")
            return 1 + len(node.value), 0
        if id(node) in self.known:
            found = self.known[id(node)]
            if found is None:
                raise ValueError(f"{self.name} must end, got an alias inside of what it stands for")
            return found
        self.known[id(node)] = None
        if isinstance(node, yaml.MappingNode):
            self._once(node)
        pairs = [x if isinstance(x, tuple) else (x,) for x in node.value]
        parts = [self.of(child, level + 1) for pair in pairs for child in pair]
        size = 1 + sum(part for part, _ in parts)
        depth = 1 + max((below for _, below in parts), default=0)
        if size > LARGEST:
            raise ValueError(
                f"{self.name} must have at most {LARGEST} characters with its aliases written out"
            )
        if level + depth > DEEPEST:
            raise ValueError(_too_deep(self.name))
        self.known[id(node)] = (size, depth)
        return size, depth

    def _once(self, mapping: yaml.MappingNode) -> None:
        """YAML's own loader would keep the last of several values and lose the others."""
        lines: dict[str, int] = {}
        texts = (key for key, _ in mapping.value if isinstance(key.value, str))
        for key in texts:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(
                    f"{self.name} must have each key once, got {key.value[:80]!r} in line "
                    f"{lines[key.value]} and in line {line}"
                )
            lines[key.value] = line


def _too_deep(name: str) -> str:
    return f"{name} must be nested at most {DEEPEST} deep"
