"""The row kernels of each backend behind one set of methods: what `Rows` hands its calls to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from logitless import _core
from logitless.backends.registry import current

if TYPE_CHECKING:
    from logitless.backends.rows import Rows


def shared(rows: Rows) -> dict[str, Any]:
    """What every backend's constructor takes."""
    names = ("n", "targets", "mask", "row_scale", "scale", "bias", "pre", "softcap")
    return {name: getattr(rows, name) for name in names}


class CudaCore:
    """_core.rows.CudaRows on torch's current stream, with workspace from torch's allocator.

    The allocator hands memory out again in stream order, so a workspace may go when the launch
    that uses it is queued. torch hands out arrays of the current device only, so every call makes
    the rows' device current.
    """

    def __init__(self, rows: Rows) -> None:
        import torch

        device = self.device = rows.targets.device
        # The emulator's arrays are on the CPU, where there is no stream.
        self.stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        with current(device):
            self.rows = _core.rows.CudaRows(**shared(rows), device=device.index or 0)
        self.n = rows.n

    def forward(self, tile: Any, state: Any, **options: Any) -> None:
        import torch

        size = _core.rows.CudaRows.workspace_bytes(self.n, tile.shape[-1], tile.element_size())
        workspace = torch.empty(size, dtype=torch.uint8, device=tile.device)
        with current(self.device):
            self.rows.forward(tile, state, **options, workspace=workspace, stream=self.stream)

    def finalize(self, state: Any, vocab: int, **outputs: Any) -> None:
        with current(self.device):
            self.rows.finalize(state, vocab, **outputs, stream=self.stream)

    def gradient(self, tile: Any, state: Any, gradient: Any, **options: Any) -> None:
        with current(self.device):
            self.rows.gradient(tile, state, gradient, **options, stream=self.stream)


def _triton(rows: Rows) -> Any:
    from logitless.kernels.rows import TritonRows

    return TritonRows(**shared(rows))


CORES: dict[str, Callable[[Rows], Any]] = {
    "cpu": lambda rows: _core.rows.Rows(**shared(rows), threads=rows.threads),
    "cuda": CudaCore,
    "triton": _triton,
}
