"""The row kernels as one object with the methods of `_core.rows.Rows`, for tensors on a GPU."""

from typing import Any

import torch
from torch import Tensor

from logitless.kernels import backward, coefficients, finish, fold, pieces
from logitless.kernels.arrays import GRADIENT_DTYPES, STATE, RowArrays
from logitless.kernels.sampling import block_sums, draw
from logitless.kernels.topk.capture import capture
from logitless.kernels.topk.kept import Kept


class TritonRows(RowArrays):
    """What the tiles of one call share; a method per row kernel.

    Nothing here waits for the device; work goes to torch's current stream. On CPU tensors it needs
    TRITON_INTERPRET=1.
    """

    def __init__(
        self,
        n: int,
        *,
        targets: Tensor,  # [n] int64
        **shared: Any,  # as RowArrays takes them
    ) -> None:
        super().__init__(n, device=targets.device, like="targets", **shared)
        self.targets = targets
        self.check("targets", targets, torch.int64)

    def forward(
        self,
        logits: Tensor,  # [n, width] or [b, t, width]
        state: Tensor,  # [n, 8] float64
        *,
        start: int = 0,
        first: bool = True,
        extras: bool = False,
        topk: Kept | None = None,
    ) -> None:
        """Fold logits[:, start : start + width] into the state, and keep the largest of them."""
        self.check("state", state, torch.float64, shape=(self.n, STATE))
        strides = self.strides("logits", logits)
        if self.n == 0:
            return
        rows = (self.targets, self.mask, self.row_scale)
        bias = self.bias_of(logits.shape[-1], start)
        records = pieces.pieces(
            logits, strides, *rows, bias, self.scale, self.chain, start=start, extras=extras
        )
        fold.fold(
            records, state, logits, *rows, self.scale, start=start, first=first, extras=extras
        )
        if topk is not None:
            topk.check(self, state)
            capture(self, logits, strides, state, records, topk, start=start, first=first)

    def recapture(
        self,
        logits: Tensor,  # [n, width] or [b, t, width]
        state: Tensor,  # [n, 8] float64, of whole rows
        topk: Kept,
        *,
        start: int,
        first: bool,
    ) -> None:
        """What `forward` keeps of a tile; masked rows stay as they are."""
        topk.check(self, state)
        strides = self.strides("logits", logits)
        if self.n:
            capture(self, logits, strides, state, None, topk, start=start, first=first)

    def finalize(
        self,
        state: Tensor,  # [n, 8] float64
        vocab: int,
        error: Tensor,  # [1] int64, lowered to row_id * 8 + kind by a bad row
        *,
        row_ids: Tensor | None = None,  # [n] int64
        **outputs: Tensor | None,  # [n] float32, argmax int64: some of finish.OUTPUTS
    ) -> None:
        """Turn the state into outputs; a masked row is 0, a bad one NaN (argmax of both: -1)."""
        self.check("state", state, torch.float64, shape=(self.n, STATE))
        self.check("error", error, torch.int64, shape=(1,))
        self.check("row_ids", row_ids, torch.int64)
        for name, output in outputs.items():
            if name not in finish.OUTPUTS:
                raise TypeError(f"an output must be one of {', '.join(finish.OUTPUTS)}, got {name}")
            self.check(name, output, torch.int64 if name == "argmax" else torch.float32)
        if self.n == 0:
            return
        rows = (self.targets, self.mask, self.row_scale, row_ids)
        finish.finish(state, vocab, error, *rows, self.scale, outputs)

    def gradient(
        self,
        logits: Tensor,  # [n, width] or [b, t, width]
        state: Tensor,  # [n, 8] float64
        gradient: Tensor,  # like logits, out; may be logits itself
        *,
        start: int = 0,
        g_logp: Tensor | None = None,  # [n] float32 or float64, and so the next two
        g_entropy: Tensor | None = None,
        g_lse: Tensor | None = None,
    ) -> None:
        """Write d(logits) of a tile; rows without a gradient are not read and get zeros."""
        self.check("state", state, torch.float64, shape=(self.n, STATE))
        self.check("g_logp", g_logp, *GRADIENT_DTYPES)
        self.check("g_entropy", g_entropy, *GRADIENT_DTYPES)
        self.check("g_lse", g_lse, *GRADIENT_DTYPES)
        strides = self.strides("logits", logits)
        gradient_strides = self.gradient_strides(logits, gradient)
        if self.n == 0 or logits.shape[-1] == 0:
            return
        per_row = coefficients.coefficients(
            state, self.mask, self.row_scale, g_logp, g_entropy, g_lse, self.scale, self.chain
        )
        backward.backward(
            logits,
            strides,
            gradient,
            gradient_strides,
            per_row,
            self.targets,
            self.bias_of(logits.shape[-1], start),
            self.chain,
            start=start,
        )

    def draw(
        self,
        logits: Tensor,  # [n, width] or [b, t, width]
        state: Tensor,  # [n, 8] float64, of `forward`
        best: Tensor,  # [n, 2] float64
        *,
        start: int,
        first: bool,
        row_ids: Tensor,  # [n] int64
        seed: int,
        step: int,
    ) -> None:
        """Draw among the tile's blocks and those that `best` has seen: with `first`, none."""
        self.check("state", state, torch.float64, shape=(self.n, STATE))
        self.check("best", best, torch.float64, shape=(self.n, 2))
        self.check("row_ids", row_ids, torch.int64)
        strides = self.strides("logits", logits)
        block = block_sums.BLOCK.value
        if start % block:
            raise ValueError(f"start must be a multiple of {block} to draw, got {start}")
        if self.n == 0:
            return
        bias = self.bias_of(logits.shape[-1], start)
        chain = (self.row_scale, bias, self.scale, self.chain)
        sums = block_sums.block_sums(logits, strides, self.n, *chain)
        draw.draw(
            state, best, sums, logits, strides, row_ids, *chain,
            start=start, first=first, seed=seed, step=step,
        )  # fmt: skip
