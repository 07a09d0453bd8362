"""_core.pyi says what the compiled core really takes: same names, same parameters, same kinds."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

from logitless import _core
from tests.support.paths import ROOT

STUB = ROOT / "python" / "logitless" / "_core.pyi"
CLASSES = ("Rows", "CudaRows", "Memory")
Parameters = list[tuple[str, str]]


def stubbed(node: ast.FunctionDef) -> Parameters:
    arguments = node.args
    kinds = [(a.arg, "positional") for a in arguments.args]
    return kinds + [(a.arg, "keyword only") for a in arguments.kwonlyargs]


def compiled(function: Any) -> Parameters:
    """From the first line of a pybind11 docstring, which is its signature."""
    (signature,) = re.findall(r"^\w+\((.*)\) ->", function.__doc__, re.MULTILINE)[:1]
    kinds, kind = [], "positional"
    for parameter in filter(None, re.split(r", (?![^\[]*\])", signature)):
        name = parameter.split(":")[0].strip()
        if name == "*":
            kind = "keyword only"
        else:
            kinds.append((name, kind))
    return kinds


def signatures() -> tuple[dict[str, Parameters], dict[str, Parameters]]:
    stubs, core = {}, {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            stubs[node.name] = stubbed(node)
        elif isinstance(node, ast.ClassDef) and node.name in CLASSES:
            for method in node.body:
                assert isinstance(method, ast.FunctionDef)
                stubs[f"{node.name}.{method.name}"] = stubbed(method)
    for name, value in vars(_core).items():
        if inspect.isroutine(value):
            core[name] = compiled(value)
    for owner in CLASSES:
        for name in vars(getattr(_core, owner)):
            value = getattr(getattr(_core, owner), name)
            if inspect.isroutine(value) and (name == "__init__" or not name.startswith("_")):
                core[f"{owner}.{name}"] = compiled(value)
    return stubs, core


def test_functions_match() -> None:
    stubs, core = signatures()
    assert set(stubs) == set(core)
    for name, parameters in core.items():
        assert stubs[name] == parameters, name


def test_enumerations_match() -> None:
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name in ("Control", "KlEstimator"):
            names = {ast.unparse(n.targets[0]) for n in node.body if isinstance(n, ast.Assign)}
            assert names == set(getattr(_core, node.name).__members__)
