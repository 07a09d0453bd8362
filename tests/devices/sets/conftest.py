"""Tests of rows over sets of tokens run where a backend has the kernels."""

from __future__ import annotations

import pytest

from logitless.backends import registry
from tests.support.device.devices import Device


@pytest.fixture(autouse=True)
def _sets(device: Device) -> None:
    if registry.get(device.backend).sets is None:
        assert device.backend != "cuda", "the compiled core has kernels of sets"
        pytest.skip(f"{device.backend} has no kernels of sets")
