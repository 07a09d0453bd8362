"""The compiled core's CUDA kernels, where they were compiled and the device has code in them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from logitless import _core
from logitless.backends.base import Backend
from logitless.backends.gpus import machine_of
from logitless.backends.row_kernels.device import (
    ABSENT,
    DeviceDivergence,
    DeviceRows,
    current,
    wrong_dtype,
)

if TYPE_CHECKING:
    from logitless.backends.row_kernels.rows import Rows
    from logitless.backends.token_kernels.protocol import TokenKernels


class CudaCore:
    """_core.rows.CudaRows on torch's current stream, with workspace from torch's allocator.

    The allocator hands memory out again in stream order, so a workspace may go when the launch
    that uses it is queued. torch hands out arrays of the current device only, so every call makes
    the rows' device current.
    """

    def __init__(self, rows: Rows, kernels: Any = _core.rows.CudaRows) -> None:
        import torch

        device = self.device = rows.targets.device
        # The emulator's arrays are on the CPU, where there is no stream.
        self.stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        with current(device):
            self.rows = kernels(**rows.shared, device=device.index or 0)
        self.n = rows.n

    def forward(self, tile: Any, state: Any, **options: Any) -> None:
        import torch

        size = self.rows.workspace_bytes(self.n, tile.shape[-1], tile.element_size())
        workspace = torch.empty(size, dtype=torch.uint8, device=tile.device)
        with current(self.device):
            self.rows.forward(tile, state, **options, workspace=workspace, stream=self.stream)

    def finalize(self, state: Any, vocab: int, **outputs: Any) -> None:
        with current(self.device):
            self.rows.finalize(state, vocab, **outputs, stream=self.stream)

    def gradient(self, tile: Any, state: Any, gradient: Any, **options: Any) -> None:
        with current(self.device):
            self.rows.gradient(tile, state, gradient, **options, stream=self.stream)


def _tokens(device: str) -> TokenKernels:
    from logitless.backends.token_kernels.cuda import cuda_tokens

    return cuda_tokens(device)


@functools.cache
def cuda_build() -> dict[str, Any]:
    """What the core says of its CUDA kernels: compiled, architectures, emulated, reason, ..."""
    build: dict[str, Any] = _core.runtime.build_info()["cuda"]
    return build


# Asking the driver takes longer than a launch, and the answer does not change.
@functools.cache
def _device_reason(index: int) -> str:
    return _core.runtime.cuda_device_reason(index)


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def backend(build: Callable[[], dict[str, Any]], device_reason: Callable[[int], str]) -> Backend:
    """That of a build, where a device has a reason not to run it, or "".

    build: what `cuda_build` says. device_reason: of the device's number.
    """

    def why_not(device: str, dtype: str) -> str:
        told, kind = build(), device.split(":")[0]
        if not told["compiled"] and not told["emulated"]:
            return f"the core was built without CUDA: {told['reason']}"
        if told["emulated"] and kind != "cpu":
            return "this build of the core emulates CUDA on the CPU, for tests"
        if not told["emulated"] and kind != "cuda":
            return "it serves CUDA tensors"
        return wrong_dtype(dtype) or ("" if told["emulated"] else device_reason(_index(device)))

    def described() -> str:
        told = build()
        if told["emulated"]:
            return "emulated on the CPU, for tests"
        if not told["compiled"]:
            return f"not compiled: {told['reason']}"
        return f"for {told['architectures']} by CUDA {told['toolkit']}"

    return Backend(
        name="cuda",
        why_not=why_not,
        machine=machine_of,
        rows=lambda rows: DeviceRows(rows, CudaCore(rows)),
        tokens=_tokens,
        divergence=DeviceDivergence(),
        absent={group: why for group, why in ABSENT.items() if group != "tokens"},
        asynchronous=True,
        described=described,
    )


BACKEND = backend(cuda_build, _device_reason)
