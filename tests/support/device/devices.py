"""What the tests of device kernels run on: a GPU, its stand-ins on the CPU, or nothing.

A test that takes the fixture `device` runs on every backend of the GPU, where there is one; without
a GPU those runs are skipped and counted. LOGITLESS_TEST_DEVICE=triton or =cuda (set by
support/device/stand_in.py, in a process of its own) makes it run on the CPU: Triton kernels
in Triton's interpreter, CUDA ones in the emulator's build of the core; with =torch, the token
kernels that are torch's operations. What is marked `fakes` is of
the wiring around kernels, and runs on the fake ones of fakes.py as well.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from logitless.backends import registry as backends
from logitless.backends.base import Backend
from logitless.backends.gpus import machine_of
from logitless.backends.row_kernels import errors as row_errors
from logitless.backends.row_kernels.device import ABSENT, DeviceRows
from logitless.backends.token_kernels.protocol import TokenKernels
from tests.support.device.interpreter import patch_once
from tests.support.tolerances import assert_gradients

NO_GPU = "no CUDA device"
# Of a fake backend there are rows alone.
GROUPS = ("topk", "sets", "sampling", "divergence", "tokens")

if os.environ.get("TRITON_INTERPRET") == "1":
    patch_once()


class Device(NamedTuple):
    backend: str
    name: str
    fake: bool = False

    @property
    def interpreted(self) -> bool:
        """By Triton's interpreter, where a program takes milliseconds."""
        return self == Device("triton", "cpu")

    def fewer(self, vocab: int) -> int:
        """A vocabulary for kernels that have a program for each of its rows of weight."""
        return vocab // 16 if self.interpreted else vocab

    def quarter(self, columns: int) -> int:
        """The same for tests whose rows keep more entries than such a vocabulary has."""
        return columns // 4 if self.interpreted else columns

    def put(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """Copies there: leaves of their own, strides kept."""
        return [x.detach().to(self.name, copy=True) for x in tensors]

    def assert_gradients(self, ours: torch.Tensor, truth: Any, *, scale: float = 1.0) -> None:
        """Triton's interpreter cuts bfloat16 off where the hardware rounds: another half ulp."""
        cut = self.interpreted and ours.dtype == torch.bfloat16
        plain = np.asarray(truth) * (1 + 2**-9) if cut else None
        assert_gradients(ours, truth, ours.dtype, plain=plain, scale=scale)

    def wait(self) -> None:
        if self.name != "cpu":
            torch.cuda.synchronize(self.name)


def devices(fakes: bool) -> list[object]:
    """Parameters of the fixture `device`."""
    standing_in = os.environ.get("LOGITLESS_TEST_DEVICE")
    if standing_in:
        return [pytest.param(Device(standing_in, "cpu"), id=f"{standing_in}-emulated")]
    params: list[object] = []
    for name in backends.ON_DEVICE:
        why = "" if torch.cuda.is_available() else NO_GPU
        why = why or backends.why_not(name, "cuda:0")
        marks = [pytest.mark.gpu, pytest.mark.skipif(bool(why), reason=f"{name}: {why}")]
        params.append(pytest.param(Device(name, "cuda:0"), id=name, marks=marks))
    if fakes:
        params.append(pytest.param(Device("triton", "cpu", fake=True), id="fake"))
    return params


def prepare(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    if device.fake:
        from tests.support.device.fakes import FakeRows

        register(monkeypatch, FakeRows)
        monkeypatch.setattr(torch.Tensor, "cpu", to_host)
    else:
        losses_there(device, monkeypatch)
    return device


def losses_there(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of its tensors are its own token kernels', where another backend's would come first:
    the CPU's where it stands in for a device, CUDA's on a GPU that has both."""
    make = backends.get(device.backend).tokens
    if make is not None and make(device.name) is not backends.token_kernels(device.name):
        tokens_there(make(device.name), monkeypatch, device.name)


def tokens_there(there: TokenKernels, monkeypatch: pytest.MonkeyPatch, device: str = "cpu") -> None:
    """Losses of tensors on such a device are these kernels'."""
    of_array = backends.token_kernels_of

    def kernels(like: Any, *, custom: bool = False) -> TokenKernels:
        ours = isinstance(like, torch.Tensor) and like.device.type == torch.device(device).type
        return there if ours and not custom else of_array(like, custom=custom)

    monkeypatch.setattr(backends, "token_kernels_of", kernels)


def register(monkeypatch: pytest.MonkeyPatch, kernels: Any) -> None:
    """A backend named triton that serves everything by these row kernels."""
    fake = Backend(
        name="triton",
        why_not=lambda device, dtype: "",
        machine=machine_of,
        rows=lambda rows: DeviceRows(rows, kernels(**rows.shared)),
        absent={**ABSENT, **dict.fromkeys(GROUPS, "there is no fake of it")},
        asynchronous=True,
    )
    monkeypatch.setitem(backends.BACKENDS, "triton", fake)


_to_cpu = torch.Tensor.cpu


def to_host(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Tensor.cpu of a fake device: the library may take no values to the host while a bad row that
    may have spoilt them is not named yet. On a device such values come without a word."""
    if sys._getframe(1).f_globals["__name__"].startswith("logitless."):
        assert not row_errors.unnamed(), "values came before a bad row was named"
    return _to_cpu(tensor, *args, **kwargs)
