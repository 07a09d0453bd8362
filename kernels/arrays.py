"""The arrays that the tiles of one call share, and the checks of those that a tile brings."""

import os

import torch
from torch import Tensor

from logitless.kernels.launch import Chain, Strides, strides_of

STATE = 8
TILE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRADIENT_DTYPES = (torch.float32, torch.float64)


def runs_on(device: torch.device) -> bool:
    """A GPU, or Triton's interpreter."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


class RowArrays:
    """y = softcap(pre * (raw + bias)) and z = scale * y, as in csrc/core.

    `like` names what is on the device of the call.
    """

    def __init__(
        self,
        n: int,
        *,
        device: torch.device,
        like: str,
        mask: Tensor | None = None,  # [n] bool; a false row is not read
        row_scale: Tensor | None = None,  # [n] float64; None: `scale` holds for all
        scale: float = 1.0,
        bias: Tensor | None = None,  # [V] float32
        pre: float = 1.0,
        softcap: float = 0.0,  # 0: none
    ) -> None:
        self.n, self.scale, self.device, self.like = n, float(scale), device, like
        self.mask, self.row_scale, self.bias = mask, row_scale, bias
        self.chain = Chain(float(pre), pre / softcap if softcap else 0.0, float(softcap))
        if not runs_on(device):
            raise ValueError(
                f"{like} must be on a GPU for the Triton kernels, got {device}; "
                "TRITON_INTERPRET=1 runs them on CPU tensors, slowly"
            )
        self.check("mask", mask, torch.bool)
        self.check("row_scale", row_scale, torch.float64)
        if bias is not None:
            self.check("bias", bias, torch.float32, shape=(bias.numel(),))

    def check(
        self,
        name: str,
        tensor: Tensor | None,
        *dtypes: torch.dtype,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """That it is None, or contiguous on the device of the call; [n] unless said otherwise."""
        if tensor is None:
            return
        shape = (self.n,) if shape is None else shape
        if tensor.dtype not in dtypes:
            raise TypeError(f"{name} must be {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
        self._check_device(name, tensor)

    def strides(self, name: str, tile: Tensor) -> Strides:
        if tile.dtype not in TILE_DTYPES:
            raise TypeError(
                f"{name} must be {' or '.join(map(str, TILE_DTYPES))}, got {tile.dtype}"
            )
        self._check_device(name, tile)
        return strides_of(tile, self.n, name)

    def gradient_strides(self, logits: Tensor, gradient: Tensor) -> Strides:
        strides = self.strides("gradient", gradient)
        if gradient.dtype != logits.dtype or gradient.shape[-1] != logits.shape[-1]:
            raise ValueError(
                f"gradient must be like logits ({logits.dtype}, {logits.shape[-1]} columns), got "
                f"{gradient.dtype}, {gradient.shape[-1]} columns"
            )
        return strides

    def bias_of(self, width: int, start: int) -> Tensor | None:
        """That of a tile."""
        if self.bias is None:
            return None
        if not 0 <= start <= start + width <= len(self.bias):
            raise ValueError(
                f"bias must cover columns {start} to {start + width}, got {len(self.bias)} entries"
            )
        return self.bias[start : start + width]

    def _check_device(self, name: str, tensor: Tensor) -> None:
        if tensor.device != self.device:
            raise ValueError(
                f"{name} must be on {self.device} as {self.like} are, got {tensor.device}"
            )
