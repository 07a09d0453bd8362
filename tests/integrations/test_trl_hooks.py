"""A TRL that is not there, or not known, is one clear error: on modules that stand for it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import make_dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from logitless.integrations.trl import hooks, install, uninstall

pytest.importorskip("torch")

from logitless.integrations.trl.distillation import asynchronous, self_distillation
from logitless.integrations.trl.distillation.replaced import DISTILLATION, TABLE, Replaced

# One that is known, of which nothing here exists.
VERSION = "1.16.99"


def of_parameters(parameters: tuple[str, ...]) -> Callable[..., Any]:
    def function(*given: Any) -> None:
        raise AssertionError

    kinds = [inspect.Parameter(x, inspect.Parameter.POSITIONAL_OR_KEYWORD) for x in parameters]
    function.__dict__["__signature__"] = inspect.Signature(kinds)
    return function


def stand_in(
    monkeypatch: pytest.MonkeyPatch, head: Callable[..., None], fields: tuple[str, ...]
) -> Callable[[str], Any]:
    """Modules of a TRL with this function and this output, and all that is in the table."""
    monkeypatch.setattr(hooks, "version", lambda name: VERSION)
    distillers = {row.module for row in TABLE}
    for name in ("trl", "trl.trainer", "trl.experimental", hooks.UTILS, *hooks.TRAINERS):
        add_module(monkeypatch, name).__dict__[hooks.HEAD] = head
    for name in distillers:
        add_module(monkeypatch, name)
    for row in TABLE:
        put(row.module, row.name, of_parameters(row.parameters))
    called: tuple[tuple[str, tuple[str, ...]], ...] = (asynchronous.TAIL, asynchronous.DIVERGENCE)
    for name, parameters in called:
        put(asynchronous.MODULE, name, of_parameters(parameters))
    for module in distillers:
        if module.endswith("loss_utils"):
            called = (self_distillation.TAIL, self_distillation.DIVERGENCE)
            for name, parameters in called:
                put(module, name, of_parameters(parameters))
    utils = sys.modules[hooks.UTILS]
    utils.__dict__[hooks.OUTPUT] = make_dataclass("Output", fields)
    return lambda name: getattr(sys.modules[name], hooks.HEAD)


def add_module(monkeypatch: pytest.MonkeyPatch, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__path__ = []
    monkeypatch.setitem(sys.modules, name, module)
    return module


def holder_of(module: str, name: str) -> tuple[Any, str]:
    """The stand-in for a module, or for a class there, and the attribute."""
    *owner, attribute = name.split(".")
    found: Any = sys.modules[module]
    if owner:
        if not hasattr(found, owner[0]):
            setattr(found, owner[0], type(owner[0], (), {}))
        found = getattr(found, owner[0])
    return found, attribute


def put(module: str, name: str, function: Callable[..., Any]) -> None:
    holder, attribute = holder_of(module, name)
    setattr(holder, attribute, staticmethod(function) if isinstance(holder, type) else function)


def held_by(row: Replaced) -> Any:
    holder, attribute = holder_of(row.module, row.name)
    return getattr(holder, attribute)


def known(model: Any, temperature: Any, cast_lm_head_to_fp32: Any, outputs: Any) -> None:
    raise AssertionError


def test_it_is_replaced_wherever_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    from logitless.integrations.trl.head import add_head

    held = stand_in(monkeypatch, known, hooks.OUTPUT_FIELDS)
    with install() as first:
        assert first is not None
        assert all(held(name) is add_head for name in (hooks.UTILS, *hooks.TRAINERS))
        # What is imported while it is installed has ours, and loses it too.
        later = types.ModuleType("trl.experimental.later")
        later.__dict__[hooks.HEAD] = held(hooks.UTILS)
        monkeypatch.setitem(sys.modules, later.__name__, later)
    assert all(held(name) is known for name in (hooks.UTILS, *hooks.TRAINERS, later.__name__))


def test_a_budget_goes_with_the_head_and_the_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    held = stand_in(monkeypatch, known, hooks.OUTPUT_FIELDS)
    (divergence,) = [x for x in TABLE if x[:2] == (DISTILLATION, "_chunked_divergence_loss")]
    with install(memory_budget="64MiB"):
        for ours in (held(hooks.UTILS), held_by(divergence)):
            assert ours.keywords == {"memory_budget": "64MiB"}
        assert held(hooks.UTILS) is held(hooks.TRAINERS[0])
        install(memory_budget="64MiB")
        with pytest.raises(ValueError, match="must be the one that is installed, 64MiB, got None"):
            install()
    assert held(hooks.UTILS) is known
    for wrong, message in (("much", "bytes or like \"256MiB\", got 'much'"), (-1, "an int >= 0")):
        with pytest.raises(ValueError, match=f"memory_budget must be {message}"):
            install(memory_budget=wrong)
    assert held(hooks.UTILS) is known


def test_another_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(model: Any, temperature: Any, outputs: Any) -> None:
        raise AssertionError

    held = stand_in(monkeypatch, other, hooks.OUTPUT_FIELDS)
    with pytest.raises(ImportError) as raised:
        install()
    text = str(raised.value)
    assert f"trl {VERSION} and found" in text and "it knows trl 1.15 and 1.16" in text
    assert "add_fused_lm_head(model, temperature, cast_lm_head_to_fp32, outputs)" in text
    assert "add_fused_lm_head(model, temperature, outputs)" in text
    assert held(hooks.UTILS) is other
    uninstall()


@pytest.mark.parametrize("row", TABLE, ids=[f"{x.module[4:]}.{x.name}" for x in TABLE])
def test_another_loss(row: Replaced, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other parameters, or gone: one error that names it, and nothing is replaced."""
    held = stand_in(monkeypatch, known, hooks.OUTPUT_FIELDS)
    before = [held_by(x) for x in TABLE]
    put(row.module, row.name, of_parameters(row.parameters[:-1]))
    last = re.escape(f"{row.parameters[-1]}) in trl {VERSION} and found")
    with pytest.raises(ImportError, match=rf"{row.module}\.{row.name}\(.*{last}"):
        install()
    delattr(*holder_of(row.module, row.name))
    with pytest.raises(
        ImportError, match=f"{row.module}.{row.name} in trl {VERSION} and found none"
    ):
        install()
    assert held(hooks.UTILS) is known
    assert [held_by(x) for x in TABLE if x != row] == [
        theirs for x, theirs in zip(TABLE, before, strict=True) if x != row
    ]


def test_a_trainer_that_lacks_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can make it, so the others are served without it; TRL's own modules must be there."""
    held = stand_in(monkeypatch, known, hooks.OUTPUT_FIELDS)
    lacks = {asynchronous.MODULE: "aiohttp"}
    imported = hooks._imported

    def importing(module: str) -> Any:
        if module in lacks:
            raise ModuleNotFoundError(f"No module named '{lacks[module]}'", name=lacks[module])
        return imported(module)

    monkeypatch.setattr(hooks, "_imported", importing)
    rows = [row for row in TABLE if row.module == asynchronous.MODULE]
    before = [held_by(row) for row in TABLE]
    with install():
        assert held(hooks.UTILS) is not known
        same = [row for row, theirs in zip(TABLE, before, strict=True) if held_by(row) is theirs]
        assert same == rows
    lacks[asynchronous.MODULE] = asynchronous.MODULE
    with pytest.raises(ImportError, match=f"{asynchronous.MODULE}.{rows[0].name} in trl {VERSION}"):
        install()


def test_losses_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, known, hooks.OUTPUT_FIELDS)
    before = [held_by(row) for row in TABLE]
    with install():
        assert not any(held_by(row) is x for row, x in zip(TABLE, before, strict=True))
    assert all(held_by(row) is x for row, x in zip(TABLE, before, strict=True))


def test_another_output(monkeypatch: pytest.MonkeyPatch) -> None:
    held = stand_in(monkeypatch, known, hooks.OUTPUT_FIELDS[:-1])
    with pytest.raises(ImportError, match=f"FusedCausalLMOutput.*trl {VERSION}"):
        install()
    assert held(hooks.UTILS) is known


@pytest.mark.parametrize("name", [hooks.UTILS, hooks.TRAINERS[-1]])
def test_a_name_that_is_gone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = stand_in(monkeypatch, known, hooks.OUTPUT_FIELDS)
    monkeypatch.delattr(sys.modules[name], hooks.HEAD)
    with pytest.raises(ImportError, match=f"{name}.{hooks.HEAD} in trl {VERSION}"):
        install()
    assert held(hooks.TRAINERS[0]) is known


def test_no_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(hooks, "version", absent)
    with pytest.raises(ImportError, match=r"pip install 'logitless\[trl\]'"):
        install()


@pytest.mark.parametrize("version", ["1.14.2", "1.17.0", "1.17.0.dev0", "2.0.0"])
def test_another_version(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where every name and every parameter is as it was."""
    held = stand_in(monkeypatch, known, hooks.OUTPUT_FIELDS)
    monkeypatch.setattr(hooks, "version", lambda name: version)
    for call in (install, hooks.grpo_trainer):
        with pytest.raises(ImportError) as raised:
            call()
        assert str(raised.value) == (
            f"logitless.integrations.trl knows trl 1.15 and 1.16, and found trl {version}"
        )
    assert held(hooks.UTILS) is known


@pytest.mark.parametrize("name", hooks.GRPO_ATTRIBUTES)
def test_a_trainer_without_an_attribute(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "version", lambda name: VERSION)
    trainer = types.SimpleNamespace(**dict.fromkeys(hooks.GRPO_ATTRIBUTES))
    hooks.check_grpo_attributes(trainer)
    delattr(trainer, name)
    with pytest.raises(ImportError, match=rf"GRPOTrainer\.{name} in trl {VERSION} and found none"):
        hooks.check_grpo_attributes(trainer)


def test_the_extra_asks_for_what_is_known() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    (wanted,) = re.findall(r'"trl>=(.*)"', pyproject.read_text())
    low, high = hooks.SUPPORTED[0], hooks.SUPPORTED[-1]
    major, minor = map(int, high.split("."))
    assert wanted == f"{low},<{major}.{minor + 1}"


def test_nothing_imports_trl_before_it_is_used() -> None:
    code = (
        "import sys, logitless, logitless.integrations.trl as t\n"
        "assert t.install and not {'trl', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
