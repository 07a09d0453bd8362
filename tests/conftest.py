"""Shared by all tests: versions in the header, memory handed out full of NaN, and devices."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pytest


def pytest_report_header() -> list[str]:
    def of(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} absent"

    names = ("numpy", "torch", "triton", "transformers", "hypothesis")
    return [f"{platform.machine()}, " + ", ".join(of(name) for name in names)]


def pytest_configure(config: pytest.Config) -> None:
    # Triton's interpreter computes both sides of every select in NumPy, which warns.
    if os.environ.get("TRITON_INTERPRET") == "1":
        config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        from tests.support.device.devices import devices

        fakes = metafunc.definition.get_closest_marker("fakes") is not None
        metafunc.parametrize("device", devices(fakes), indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A backend and a device to test the device kernels on, see support/devices.py."""
    from tests.support.device.devices import prepare

    return prepare(request.param, monkeypatch)


@pytest.fixture
def kernels(device: Any) -> Any:
    """The token kernels of the device."""
    from logitless.backends import registry

    make = registry.get(device.backend).tokens
    assert make is not None
    return make(device.name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu need a device; those of the fixture `device` say so themselves."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            if item.get_closest_marker("skipif") is None:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much of what needs a GPU did not run: easily forgotten where there is none."""
    # A module that was skipped as a whole has no keywords.
    reports = terminalreporter.stats.get("skipped", [])
    skipped = [r for r in reports if "gpu" in getattr(r, "keywords", ())]
    if skipped:
        terminalreporter.write_line(f"gpu tests: {len(skipped)} skipped here, see the reasons")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is NaN (or a wild number), so an output nobody wrote cannot pass for zero."""
    numpy_empty = np.empty

    def empty_array(*args: Any, **kwargs: Any) -> Any:
        array = numpy_empty(*args, **kwargs)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", empty_array)
    try:
        import torch
    except ModuleNotFoundError:
        return

    def poison(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensor = original(*args, **kwargs)
            if tensor.device.type in ("cpu", "cuda"):
                tensor.detach().fill_(float("nan") if tensor.is_floating_point() else 85)
            return tensor

        return call

    from logitless.backends import memory

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
        (memory, "buffer"),
    ):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
