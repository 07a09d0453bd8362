"""The row kernels as one object with the methods of `_core.rows.Rows`, for tensors on a GPU."""

import os

import torch
from torch import Tensor

from logitless.kernels import backward, coefficients, finish, fold, pieces
from logitless.kernels.launch import Chain, Strides, strides_of

STATE = 8
TILE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRADIENT_DTYPES = (torch.float32, torch.float64)


def runs_on(device: torch.device) -> bool:
    """A GPU, or Triton's interpreter."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def _check(name: str, tensor: Tensor | None, device: torch.device, shape: tuple[int, ...],
           *dtypes: torch.dtype) -> None:  # fmt: skip
    if tensor is None:
        return
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} as targets are, got {tensor.device}")


class TritonRows:
    """What the tiles of one call share; a method per row kernel.

    y = softcap(pre * (raw + bias)) and z = scale * y, as in csrc/core. Nothing here waits for the
    device; work goes to torch's current stream. On CPU tensors it needs TRITON_INTERPRET=1.
    """

    def __init__(
        self,
        n: int,
        *,
        targets: Tensor,  # [n] int64
        mask: Tensor | None = None,  # [n] bool; a false row is not read
        row_scale: Tensor | None = None,  # [n] float64; None: `scale` holds for all
        scale: float = 1.0,
        bias: Tensor | None = None,  # [V] float32
        pre: float = 1.0,
        softcap: float = 0.0,  # 0: none
    ) -> None:
        self.n, self.scale = n, float(scale)
        self.targets, self.mask, self.row_scale, self.bias = targets, mask, row_scale, bias
        self.chain = Chain(float(pre), pre / softcap if softcap else 0.0, float(softcap))
        self.device = targets.device
        if not runs_on(targets.device):
            raise ValueError(
                f"targets must be on a GPU for the Triton kernels, got {targets.device}; "
                "TRITON_INTERPRET=1 runs them on CPU tensors, slowly"
            )
        self._check("targets", targets, torch.int64)
        self._check("mask", mask, torch.bool)
        self._check("row_scale", row_scale, torch.float64)
        if bias is not None:
            self._check("bias", bias, torch.float32, shape=(bias.numel(),))

    def _check(
        self,
        name: str,
        tensor: Tensor | None,
        *dtypes: torch.dtype,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        _check(name, tensor, self.device, (self.n,) if shape is None else shape, *dtypes)

    def _strides(self, name: str, tile: Tensor) -> Strides:
        if tile.dtype not in TILE_DTYPES:
            raise TypeError(
                f"{name} must be {' or '.join(map(str, TILE_DTYPES))}, got {tile.dtype}"
            )
        if tile.device != self.device:
            raise ValueError(f"{name} must be on {self.device} as targets are, got {tile.device}")
        return strides_of(tile, self.n, name)

    def _bias(self, width: int, start: int) -> Tensor | None:
        if self.bias is None:
            return None
        if not 0 <= start <= start + width <= len(self.bias):
            raise ValueError(
                f"bias must cover columns {start} to {start + width}, got {len(self.bias)} entries"
            )
        return self.bias[start : start + width]

    def forward(
        self,
        logits: Tensor,  # [n, width] or [b, t, width]
        state: Tensor,  # [n, 8] float64
        *,
        start: int = 0,
        first: bool = True,
        extras: bool = False,
    ) -> None:
        """Fold logits[:, start : start + width] into the state."""
        self._check("state", state, torch.float64, shape=(self.n, STATE))
        strides = self._strides("logits", logits)
        if self.n == 0:
            return
        rows = (self.targets, self.mask, self.row_scale)
        bias = self._bias(logits.shape[-1], start)
        records = pieces.pieces(
            logits, strides, *rows, bias, self.scale, self.chain, start=start, extras=extras
        )
        fold.fold(
            records, state, logits, *rows, self.scale, start=start, first=first, extras=extras
        )

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
        self._check("state", state, torch.float64, shape=(self.n, STATE))
        self._check("error", error, torch.int64, shape=(1,))
        self._check("row_ids", row_ids, torch.int64)
        for name, output in outputs.items():
            if name not in finish.OUTPUTS:
                raise TypeError(f"an output must be one of {', '.join(finish.OUTPUTS)}, got {name}")
            self._check(name, output, torch.int64 if name == "argmax" else torch.float32)
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
        self._check("state", state, torch.float64, shape=(self.n, STATE))
        self._check("g_logp", g_logp, *GRADIENT_DTYPES)
        self._check("g_entropy", g_entropy, *GRADIENT_DTYPES)
        self._check("g_lse", g_lse, *GRADIENT_DTYPES)
        strides = self._strides("logits", logits)
        gradient_strides = self._strides("gradient", gradient)
        if gradient.dtype != logits.dtype or gradient.shape[-1] != logits.shape[-1]:
            raise ValueError(
                f"gradient must be like logits ({logits.dtype}, {logits.shape[-1]} columns), got "
                f"{gradient.dtype}, {gradient.shape[-1]} columns"
            )
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
            self._bias(logits.shape[-1], start),
            self.chain,
            start=start,
        )
