"""What the row kernels of a device share: nothing waits, and bad rows are named later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from logitless.backends.row_kernels.rows import Rows

# Kernels are float32 inside, which float64 logits are not served by.
DTYPES = ("float32", "bfloat16", "float16")
ABSENT = {
    "statistics": "it has row kernels",
}


class DeviceRows:
    """Calls queue work on the current stream. `core` has the kernels of a backend: forward,
    finalize with `error`, a flag for bad rows, and gradient."""

    def __init__(self, rows: Rows, core: Any) -> None:
        self.rows, self.core = rows, core
        self.forward, self.gradient = core.forward, core.gradient

    def merge(self, parts: Any, state: Any) -> None:
        from logitless.backends.row_kernels.states import merge_states

        rows = self.rows
        state.copy_(merge_states(parts, rows.scale if rows.row_scale is None else rows.row_scale))

    def finalize(self, state: Any, vocab: int, *, row_ids: Any = None, **outputs: Any) -> None:
        from logitless.backends.row_kernels.errors import flag_temperatures, watched

        rows = self.rows
        allowed = "its sampling_mask" if rows.of_sets else f"[0, {vocab})"
        with watched(rows.op, state.device, allowed) as flag:
            if rows.row_scale is not None:
                flag_temperatures(flag, rows.row_scale, rows.mask, row_ids)
            self.core.finalize(state, vocab, error=flag, row_ids=row_ids, **outputs)


class DeviceDivergence:
    """The same of a student's rows beside a teacher's. `make` gives the kernels of a backend, for
    the device that the states are on: rows may have no array."""

    def __init__(self, rows: Rows, teacher: Rows, make: Callable[[Rows, Rows, Any], Any]) -> None:
        self.rows, self.teacher, self.make = rows, teacher, make
        self.made: Any = None

    def _core(self, state: Any) -> Any:
        if self.made is None:
            self.made = self.make(self.rows, self.teacher, state.device)
        return self.made

    def forward(self, tile: Any, other: Any, state: Any, **options: Any) -> None:
        self._core(state).forward(tile, other, state, **options)

    def merge(self, parts: Any, state: Any) -> None:
        from logitless.backends.row_kernels.pair_states import merge_pair_states

        own, other = (x.scale if x.row_scale is None else x.row_scale for x in self._both)
        state.copy_(merge_pair_states(parts, own, other))

    def mix(self, tile: Any, other: Any, state: Any, sums: Any, **options: Any) -> None:
        self._core(state).mix(tile, other, state, sums, **options)

    def finalize(self, state: Any, *, row_ids: Any = None, **outputs: Any) -> None:
        from logitless.backends.row_kernels.errors import flag_temperatures, watched

        with watched(self.rows.op, state.device) as flag:
            for side in self._both:
                if side.row_scale is not None:
                    flag_temperatures(flag, side.row_scale, self.rows.mask, row_ids)
            self._core(state).finalize(state, error=flag, row_ids=row_ids, **outputs)

    def gradient(self, tile: Any, other: Any, state: Any, out: Any, **options: Any) -> None:
        self._core(state).gradient(tile, other, state, out, **options)

    @property
    def _both(self) -> tuple[Rows, Rows]:
        return self.rows, self.teacher


def wrong_dtype(dtype: str) -> str:
    return "" if dtype in DTYPES else f"its kernels take {', '.join(DTYPES)}"


def stream_of(device: torch.device) -> int:
    """torch's current stream there. The emulator's arrays are on the CPU, where there is none."""
    if device.type != "cuda":
        return 0
    import torch

    return torch.cuda.current_stream(device).cuda_stream


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device torch's current one: streams, captures and DLPack go by that."""
    if device.type != "cuda":
        return nullcontext()
    import torch

    return torch.cuda.device(device)
