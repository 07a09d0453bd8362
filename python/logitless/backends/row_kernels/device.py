"""What the row kernels of a device share: nothing waits, and bad rows are named later."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from logitless.backends.row_kernels.rows import Rows

# Kernels are float32 inside, which float64 logits are not served by.
DTYPES = ("float32", "bfloat16", "float16")
ABSENT = {
    "statistics": "it has row kernels",
    "topk": "the kernels of kept entries run on the CPU only; tail_mass=0 is exact and everywhere",
    "sets": "the kernels of rows over sets of tokens run on the CPU only; backend='torch' "
    "renormalises full logits",
    "sampling": "the kernels that draw tokens run on the CPU only: pass hidden.cpu() and "
    "weight.cpu(), or draw from logits by torch.multinomial((hidden @ weight.T).softmax(-1), 1), "
    "scored by linear_token_stats",
    "tokens": "the kernels of the [N] vectors run on the CPU, on copies of the inputs",
}


class DeviceDivergence:
    """A student's rows beside a teacher's, in torch's operations on the current stream."""

    @cached_property
    def kernels(self) -> Any:
        from logitless.backends.row_kernels import tensor_divergence

        return tensor_divergence

    def forward(self, rows: Rows, teacher: Rows, *tiles: Any, **options: Any) -> None:
        self.kernels.forward(rows, teacher, *tiles, **options)

    def merge(self, rows: Rows, teacher: Rows, parts: Any, state: Any) -> None:
        self.kernels.merge(rows, teacher, parts, state)

    def mix(self, rows: Rows, teacher: Rows, *tiles: Any, **how: Any) -> None:
        self.kernels.mix(rows, teacher, *tiles, **how)

    def finalize(self, rows: Rows, teacher: Rows, state: Any, **outputs: Any) -> None:
        self.kernels.finalize(rows, teacher, state, **outputs)

    def gradient(self, rows: Rows, teacher: Rows, *tiles: Any, **how: Any) -> None:
        self.kernels.gradient(rows, teacher, *tiles, **how)


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
        with watched(rows.op, state.device, vocab) as flag:
            if rows.row_scale is not None:
                flag_temperatures(flag, rows.row_scale, rows.mask, row_ids)
            self.core.finalize(state, vocab, error=flag, row_ids=row_ids, **outputs)


def wrong_dtype(dtype: str) -> str:
    return "" if dtype in DTYPES else f"its kernels take {', '.join(DTYPES)}"


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device torch's current one: streams, captures and DLPack go by that."""
    if device.type != "cuda":
        return nullcontext()
    import torch

    return torch.cuda.device(device)
