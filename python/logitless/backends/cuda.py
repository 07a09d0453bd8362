"""The compiled core's CUDA kernels, where they were compiled and the device has code in them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from logitless import _core
from logitless.backends.base import Backend
from logitless.backends.gpus import machine_of
from logitless.backends.row_kernels.cuda_sets import CudaSets
from logitless.backends.row_kernels.cuda_topk import CudaSparse, CudaTopK
from logitless.backends.row_kernels.device import (
    ABSENT,
    DeviceDivergence,
    DeviceRows,
    current,
    stream_of,
    wrong_dtype,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from logitless.backends.row_kernels.rows import Rows
    from logitless.backends.token_kernels.protocol import TokenKernels


class CudaCore:
    """_core.rows.CudaRows on torch's current stream, with workspace from torch's allocator.

    The allocator hands memory out again in stream order, so a workspace may go when the launch
    that uses it is queued. torch hands out arrays of the current device only, so every call makes
    the rows' device current.
    """

    def __init__(self, rows: Rows, kernels: Any = _core.rows.CudaRows) -> None:
        device = self.device = rows.targets.device
        self.stream = stream_of(device)
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

    def draw(self, kernel: Callable[..., None], tile: Any, *arrays: Any, **options: Any) -> None:
        """One of `_core.sampling` for these rows."""
        import torch

        size = _core.sampling.cuda_workspace_bytes(self.n, tile.shape[-1])
        workspace = torch.empty(size, dtype=torch.uint8, device=tile.device)
        with current(self.device):
            kernel(self.rows, tile, *arrays, **options, workspace=workspace, stream=self.stream)


class CudaSampling:
    """Draws by `_core.sampling`. The state is that of `forward`, so that a draw is scored as
    linear_token_stats scores it."""

    keeps_largest = False

    def sample(
        self, rows: Rows, tile: Any, state: Any, best: Any, *, start: int, first: bool, **noise: Any
    ) -> None:
        rows.forward(tile, state, start=start, first=first)
        _core_of(rows).draw(
            _core.sampling.cuda_sample, tile, state, best, start=start, first=first, **noise
        )

    def draw_truncated(
        self, rows: Rows, state: Any, drawn: Any, *, logits: Any = None, **options: Any
    ) -> None:
        _core_of(rows).draw(_core.sampling.cuda_draw_truncated, logits, state, drawn, **options)


def _core_of(rows: Rows) -> CudaCore:
    kernels: Any = rows.kernels
    core: CudaCore = kernels.core
    return core


class CudaPair:
    """_core.divergence.CudaPair in the same way."""

    def __init__(self, rows: Rows, teacher: Rows, device: torch.device) -> None:
        self.device, self.stream, self.n = device, stream_of(device), rows.n
        with current(device):
            both = (
                _core.rows.CudaRows(**x.shared, device=device.index or 0) for x in (rows, teacher)
            )
            self.kernels = _core.divergence.CudaPair(*both)
            noise = teacher.noise
            self.noise = None if noise is None else noise.on(device.index or 0)

    def forward(self, tile: Any, other: Any, state: Any, **options: Any) -> None:
        with self._lent(tile) as lent:
            self._queue(self.kernels.forward, tile, other, state, lent, **options)

    def mix(self, tile: Any, other: Any, state: Any, sums: Any, **options: Any) -> None:
        with self._lent(tile) as lent:
            self._queue(self.kernels.mix, tile, other, state, sums, lent, **options)

    def finalize(self, state: Any, **outputs: Any) -> None:
        with current(self.device):
            self.kernels.finalize(state, **outputs, stream=self.stream)

    def gradient(self, tile: Any, other: Any, state: Any, out: Any, **options: Any) -> None:
        with self._lent(tile) as lent:
            self._queue(self.kernels.gradient, tile, other, state, out, lent, **options)

    def _queue(self, kernel: Callable[..., None], *arrays: Any, **options: Any) -> None:
        kernel(*arrays, **options, noise=self.noise, stream=self.stream)

    @contextmanager
    def _lent(self, tile: Any) -> Iterator[Tensor]:
        """Workspace for a call on a tile, with the device current."""
        import torch

        size = self.kernels.workspace_bytes(self.n, tile.shape[-1])
        workspace = torch.empty(size, dtype=torch.uint8, device=self.device)
        with current(self.device):
            yield workspace


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
        topk=CudaTopK(),
        sparse=CudaSparse(),
        sets=CudaSets(),
        sampling=CudaSampling(),
        tokens=_tokens,
        divergence=lambda rows, teacher: DeviceDivergence(rows, teacher, CudaPair),
        absent=ABSENT,
        asynchronous=True,
        described=described,
    )


BACKEND = backend(cuda_build, _device_reason)
