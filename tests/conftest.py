"""Shared by all tests: versions in the header, and memory handed out full of NaN."""

from __future__ import annotations

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
            if tensor.device.type == "cpu":
                tensor.detach().fill_(float("nan") if tensor.is_floating_point() else 85)
            return tensor

        return call

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
