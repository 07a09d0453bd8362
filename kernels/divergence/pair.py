"""The kernels of two softmaxes as one object, for tensors on a GPU."""

from typing import Any

import torch
from torch import Tensor

from logitless.kernels.arrays import GRADIENT_DTYPES, STATE, RowArrays
from logitless.kernels.divergence.combine import combine
from logitless.kernels.divergence.gradient import gradient
from logitless.kernels.divergence.mix import mix
from logitless.kernels.divergence.mix_sums import mix_sums
from logitless.kernels.divergence.moments import moments
from logitless.kernels.divergence.noise import Noise
from logitless.kernels.divergence.terms import terms
from logitless.kernels.divergence.values import OUTPUTS, values
from logitless.kernels.launch import Strides


class TritonPair:
    """What the tiles of one call share, of a student's rows and their teacher's; a method a pass.

    Nothing here waits for the device; work goes to torch's current stream. On CPU tensors it needs
    TRITON_INTERPRET=1.
    """

    def __init__(
        self,
        student: dict[str, Any],  # n and what RowArrays takes
        teacher: dict[str, Any],
        device: torch.device,
        noise: dict[str, Any] | None = None,  # what Noise.of takes, of the teacher's rows
    ) -> None:
        own, other = (
            RowArrays(**_without_targets(side), device=device, like="states")
            for side in (student, teacher)
        )
        if own.n != other.n:
            raise ValueError(f"teacher must have {own.n} rows, got {other.n}")
        self.student, self.teacher, self.n = own, other, own.n
        self.noise = None if noise is None else Noise.of(other, **noise)

    def forward(
        self,
        logits: Tensor,  # [n, width] or [b, t, width]
        other: Tensor,  # the teacher's, of the same columns
        state: Tensor,  # [n, 8] float64
        *,
        start: int = 0,
        first: bool = True,
    ) -> None:
        """Fold a tile of each into the state."""
        self._check_state(state)
        strides = self._strides(logits, other)
        if self.n == 0:
            return
        rows = self.student, self.teacher
        records = moments(logits, other, *strides, *rows, start=start, noise=self.noise)
        combine(records, state, *rows, first=first)

    def mix(
        self,
        logits: Tensor,
        other: Tensor,
        state: Tensor,
        sums: Tensor,  # [n, 2] float64
        *,
        beta: float,
        start: int = 0,
        first: bool = True,
    ) -> None:
        """Add a tile of each to the sums: what student and teacher diverge from their mix."""
        self._check_state(state)
        self.student.check("sums", sums, torch.float64, shape=(self.n, 2))
        strides = self._strides(logits, other)
        if self.n == 0:
            return
        rows = self.student, self.teacher
        per_row = terms(state, None, *rows, kind="jsd", beta=beta)
        records = mix(
            logits, other, *strides, per_row, *rows, beta=beta, start=start, noise=self.noise
        )
        mix_sums(records, state, sums, self.student.mask, first=first)

    def finalize(
        self,
        state: Tensor,
        *,
        error: Tensor,  # [1] int64, lowered to row_id * 8 + kind by a bad row
        row_ids: Tensor | None = None,  # [n] int64
        **outputs: Tensor,  # [n] float32: all of values.OUTPUTS
    ) -> None:
        """Turn the state into outputs; a masked row is 0, a bad one NaN."""
        self._check_state(state)
        self.student.check("error", error, torch.int64, shape=(1,))
        self.student.check("row_ids", row_ids, torch.int64)
        if tuple(sorted(outputs)) != tuple(sorted(OUTPUTS)):
            raise TypeError(f"outputs must be {', '.join(OUTPUTS)}, got {', '.join(outputs)}")
        for name, output in outputs.items():
            self.student.check(name, output, torch.float32)
        if self.n:
            values(state, error, self.student, row_ids, outputs)

    def gradient(
        self,
        logits: Tensor,
        other: Tensor,
        state: Tensor,
        out: Tensor,  # like logits; may be logits
        *,
        kind: str,
        beta: float = 0.5,
        sums: Tensor | None = None,  # [n, 2] float64, of jsd
        g_divergence: Tensor | None = None,  # [n] float32 or float64, and so the next
        g_entropy: Tensor | None = None,
        start: int = 0,
    ) -> None:
        """Write d(logits) of a student's tile; rows without a gradient are not read, and get 0."""
        self._check_state(state)
        self.student.check("sums", sums, torch.float64, shape=(self.n, 2))
        self.student.check("g_divergence", g_divergence, *GRADIENT_DTYPES)
        self.student.check("g_entropy", g_entropy, *GRADIENT_DTYPES)
        strides = self._strides(logits, other)
        out_strides = self.student.gradient_strides(logits, out)
        if self.n == 0 or logits.shape[-1] == 0:
            return
        rows = self.student, self.teacher
        per_row = terms(
            state, sums, *rows, kind=kind, beta=beta, differentiated=True,
            g_divergence=g_divergence, g_entropy=g_entropy,
        )  # fmt: skip
        gradient(
            logits, other, out, *strides, out_strides, per_row, *rows, kind=kind, start=start,
            noise=self.noise,
        )  # fmt: skip

    def _check_state(self, state: Tensor) -> None:
        self.student.check("state", state, torch.float64, shape=(self.n, STATE))

    def _strides(self, logits: Tensor, other: Tensor) -> tuple[Strides, Strides]:
        if logits.shape[-1:] != other.shape[-1:]:
            raise ValueError(
                f"teacher_logits must have the columns of logits, {logits.shape[-1]}, got "
                f"{other.shape[-1]}"
            )
        return (
            self.student.strides("logits", logits),
            self.teacher.strides("teacher_logits", other),
        )


def _without_targets(side: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in side.items() if name != "targets"}
