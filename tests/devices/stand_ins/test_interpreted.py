"""The tests of device kernels without a device: Triton's in its interpreter, and the token kernels
that are torch's operations."""

from __future__ import annotations

import pytest

from tests.support.device.stand_in import run_device_tests
from tests.support.versions import why_no_interpreter


@pytest.mark.slow
@pytest.mark.skipif(bool(why_no_interpreter()), reason=why_no_interpreter())
def test_triton_kernels_in_the_interpreter() -> None:
    run_device_tests("triton", TRITON_INTERPRET="1")


@pytest.mark.slow
def test_token_kernels_of_torch() -> None:
    run_device_tests("torch")
