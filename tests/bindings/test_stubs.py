"""The stubs say what the compiled core really takes: every function, class, method and constant."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import numpy as np
import pytest

from logitless import _core
from tests.fuzz.play import MAKERS
from tests.support.paths import ROOT

STUBS = ROOT / "python" / "logitless" / "_core"
MODULES = {name: value for name, value in vars(_core).items() if inspect.ismodule(value)}
Parameters = list[tuple[str, str]]
# Of a function that reads its names itself, so that no signature has them.
BY_NAME = ("**kwargs", "positional")


def stubbed(node: ast.FunctionDef) -> Parameters:
    arguments = node.args
    kinds = [(a.arg, "positional") for a in arguments.args]
    kinds += [(a.arg, "keyword only") for a in arguments.kwonlyargs]
    return kinds + ([] if arguments.kwarg is None else [(f"**{arguments.kwarg.arg}", kinds[-1][1])])


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


def names_in(module: str) -> dict[str, Any]:
    """Name -> parameters, the members of an enumeration (none where the stub leaves them to the
    core), or None for a constant, by the stub."""
    found: dict[str, Any] = {}
    classes = {}
    for node in ast.parse((STUBS / f"{module}.pyi").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = stubbed(node)
        elif isinstance(node, ast.AnnAssign):
            found[ast.unparse(node.target)] = None
        elif isinstance(node, ast.ClassDef):
            classes[node.name] = node
    for name, node in classes.items():
        if name.startswith("_"):
            continue
        bases = [ast.unparse(base) for base in node.bases]
        if bases == ["enum.Enum"]:
            found[name] = {
                ast.unparse(n.targets[0]) for n in node.body if isinstance(n, ast.Assign)
            }
            continue
        for owner in (node, *(classes[base] for base in bases)):
            for method in owner.body:
                if isinstance(method, ast.FunctionDef):
                    found[f"{name}.{method.name}"] = stubbed(method)
    return found


def names_of(module: Any) -> dict[str, Any]:
    """The same, by the compiled module."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name.startswith("__"):
            continue
        if not inspect.isclass(value):
            found[name] = compiled(value) if inspect.isroutine(value) else None
        elif hasattr(value, "__members__"):
            found[name] = set(value.__members__)
        else:
            for method in vars(value):
                member = getattr(value, method)
                if inspect.isroutine(member) and (method == "__init__" or method[0] != "_"):
                    found[f"{name}.{method}"] = compiled(member)
    return found


def test_every_module_has_its_stub() -> None:
    assert {path.stem for path in STUBS.iterdir()} == {*MODULES, "__init__"}
    others = [name for name in vars(_core) if name not in MODULES and not name.startswith("__")]
    assert others == [], "everything is in a submodule"


@pytest.mark.parametrize("module", MODULES)
def test_a_stub_is_what_is_compiled(module: str) -> None:
    stub, core = names_in(module), names_of(MODULES[module])
    assert set(stub) == set(core)
    left_to_core = {name for name, value in stub.items() if value == set()}
    assert left_to_core == ({"Surrogate"} if module == "tokens" else set())
    for name, parameters in core.items():
        if isinstance(parameters, list) and BY_NAME in parameters:
            # all of them are in a valid call, which the fuzzer makes
            given = MAKERS[f"{module}.{name}"](_core, np.random.default_rng(0)).arguments
            names = [(key, "keyword only") for key in given if not key.startswith("own.")]
            assert sorted(stub[name]) == sorted([*parameters[:-1], *names]), name
        else:
            assert name in left_to_core or stub[name] == parameters, name


def test_a_stub_that_lies_is_noticed() -> None:
    """Each kind of thing is really compared."""
    found = names_of(_core.tokens)
    assert found["SUM_WORDS"] is None
    assert found["exp"] == [(name, "positional") for name in ("x", "out", "threads")]
    assert found["KlWeight"] == {"none", "ratio", "score"}
    assert ("topk", "keyword only") in names_of(_core.rows)["Rows.forward"]
    assert "TopK.__init__" in names_of(_core.topk)
