"""A TRL that is not there, or not known, is one clear error: on modules that stand for it."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import make_dataclass
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from logitless.integrations.trl import hooks, install, uninstall


def divergence(parameters: tuple[str, ...] = hooks.DIVERGENCE_PARAMETERS) -> Callable[..., Any]:
    def function(*given: Any) -> None:
        raise AssertionError

    kinds = [inspect.Parameter(x, inspect.Parameter.POSITIONAL_OR_KEYWORD) for x in parameters]
    function.__dict__["__signature__"] = inspect.Signature(kinds)
    return function


def stand_in(
    monkeypatch: pytest.MonkeyPatch, head: Callable[..., None], fields: tuple[str, ...]
) -> Callable[[str], Any]:
    """Modules of a TRL 9.9 with this function and this output."""
    monkeypatch.setattr(hooks, "version", lambda name: "9.9")
    for name in ("trl", "trl.trainer", hooks.UTILS, hooks.DISTILLATION, *hooks.TRAINERS):
        module = types.ModuleType(name)
        module.__path__ = []
        setattr(module, hooks.HEAD, head)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules[hooks.DISTILLATION].__dict__[hooks.DIVERGENCE] = divergence()
    utils = sys.modules[hooks.UTILS]
    utils.__dict__[hooks.OUTPUT] = make_dataclass("Output", fields)
    return lambda name: getattr(sys.modules[name], hooks.HEAD)


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
    distillation = sys.modules[hooks.DISTILLATION]
    with install(memory_budget="64MiB"):
        for ours in (held(hooks.UTILS), getattr(distillation, hooks.DIVERGENCE)):
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
    assert "trl 9.9" in text and hooks.SUPPORTED in text
    assert "add_fused_lm_head(model, temperature, cast_lm_head_to_fp32, outputs)" in text
    assert "add_fused_lm_head(model, temperature, outputs)" in text
    assert held(hooks.UTILS) is other
    uninstall()


def test_another_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    held = stand_in(monkeypatch, known, hooks.OUTPUT_FIELDS)
    other = divergence(hooks.DIVERGENCE_PARAMETERS[:-1])
    monkeypatch.setitem(vars(sys.modules[hooks.DISTILLATION]), hooks.DIVERGENCE, other)
    with pytest.raises(ImportError, match=r"_chunked_divergence_loss\(.*temperature\) in trl 9\.9"):
        install()
    assert held(hooks.UTILS) is known
    monkeypatch.delitem(vars(sys.modules[hooks.DISTILLATION]), hooks.DIVERGENCE)
    with pytest.raises(ImportError, match=f"{hooks.DIVERGENCE} in trl 9.9"):
        install()
    assert held(hooks.UTILS) is known


def test_another_output(monkeypatch: pytest.MonkeyPatch) -> None:
    held = stand_in(monkeypatch, known, hooks.OUTPUT_FIELDS[:-1])
    with pytest.raises(ImportError, match=r"FusedCausalLMOutput.*trl 9\.9"):
        install()
    assert held(hooks.UTILS) is known


@pytest.mark.parametrize("name", [hooks.UTILS, hooks.TRAINERS[-1]])
def test_a_name_that_is_gone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = stand_in(monkeypatch, known, hooks.OUTPUT_FIELDS)
    monkeypatch.delattr(sys.modules[name], hooks.HEAD)
    with pytest.raises(ImportError, match=f"{name}.{hooks.HEAD} in trl 9.9"):
        install()
    assert held(hooks.TRAINERS[0]) is known


def test_no_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(hooks, "version", absent)
    with pytest.raises(ImportError, match=r"pip install 'logitless\[trl\]'"):
        install()


def test_nothing_imports_trl_before_it_is_used() -> None:
    code = (
        "import sys, logitless, logitless.integrations.trl as t\n"
        "assert t.install and not {'trl', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
