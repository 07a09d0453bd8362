"""The noise on a teacher's logits that a call asks for, checked once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from logitless.backends.row_kernels.noise import RowNoise
from logitless.inputs.arrays import check_dtype, check_shape
from logitless.inputs.checks import is_tensor, not_negative, whole
from logitless.inputs.gradients import is_traced
from logitless.inputs.weights import FLOATS
from logitless.ops.sharding.rendezvous import Facts, fingerprint

if TYPE_CHECKING:
    import torch


class Noise(NamedTuple):
    """Standard deviations of z, and what the random numbers are a function of."""

    sizes: Any  # a number, or one per token
    seed: int
    step: int
    row_ids: Any  # one per token

    @property
    def facts(self) -> Facts:
        """What must be the same on every rank."""
        of_tokens = _per_token(self.sizes)
        return (
            ("teacher_noise", fingerprint(self.sizes) if of_tokens else self.sizes),
            ("seed", self.seed), ("step", self.step),
            ("row_ids (their checksum)", fingerprint(self.row_ids)),
        )  # fmt: skip

    def of_tensors(self, n: int, mask: torch.Tensor | None, device: torch.device) -> dict[str, Any]:
        """Fields of a TeacherChain, of flat rows."""
        import torch

        if _per_token(self.sizes):
            sizes = self.sizes.detach().reshape(-1).to(torch.float64)
            # a row that is wrong is found with its logits: nothing waits for a device's
            sizes = torch.where(sizes.isfinite() & (sizes >= 0), sizes, torch.nan)
            # what stands outside the mask may be anything
            sizes = sizes if mask is None else torch.where(mask, sizes, 0.0)
        else:
            sizes = torch.full((n,), self.sizes, dtype=torch.float64, device=device)
        seed = self.seed if self.seed < 1 << 63 else self.seed - (1 << 64)
        row_ids = self.row_ids.reshape(-1).contiguous()
        return {"sizes": sizes.contiguous(), "row_ids": row_ids, "seed": seed, "step": self.step}

    def of_arrays(self, n: int, mask: Any) -> RowNoise:
        """Of flat NumPy rows."""
        sizes = np.broadcast_to(np.asarray(self.sizes, np.float64).reshape(-1), (n,))
        sizes = sizes if mask is None else np.where(mask.reshape(-1), sizes, 0.0)
        row_ids = np.ascontiguousarray(self.row_ids).reshape(-1)
        return RowNoise(self.seed, self.step, row_ids, np.ascontiguousarray(sizes))


def noise_arrays(sizes: Any, row_ids: Any) -> dict[str, Any]:
    """The arguments that are arrays, by name."""
    return {"teacher_noise": sizes if _per_token(sizes) else None, "row_ids": row_ids}


def _per_token(sizes: Any) -> bool:
    return (is_tensor(sizes) or isinstance(sizes, np.ndarray)) and sizes.ndim > 0


def _on_device(sizes: Any) -> bool:
    return is_tensor(sizes) and sizes.device.type != "cpu"


def check_noise(
    op: str, sizes: Any, seed: Any, step: Any, row_ids: Any, mask: Any, shape: tuple[int, ...]
) -> Noise | None:
    """None where none is asked for. `mask`: where sizes are looked at."""
    step = whole("step", step, below=1 << 34)
    if seed is not None:
        seed = whole("seed", seed, below=1 << 64)
    if row_ids is not None:
        check_shape(op, "row_ids", row_ids, "the shape of the tokens", shape)
        check_dtype(op, "row_ids", row_ids, "int64")
    if not _per_token(sizes):
        sizes = float(not_negative("teacher_noise", sizes))
        if not sizes:
            return None
    else:
        check_shape(op, "teacher_noise", sizes, "a number or the shape of the tokens", shape)
        check_dtype(op, "teacher_noise", sizes, *FLOATS)
        if not is_traced(sizes) and not _on_device(sizes):
            _check_sizes(op, sizes, mask)
    for name, value in (("seed", seed), ("row_ids", row_ids)):
        if value is None:
            raise ValueError(f"{op}: teacher_noise needs {name}, got None")
    return Noise(sizes, seed, step, row_ids)


def _check_sizes(op: str, sizes: Any, mask: Any) -> None:
    held = sizes.detach().double().numpy() if is_tensor(sizes) else sizes
    wrong = ~(np.isfinite(held) & (held >= 0))
    if mask is not None:
        wrong &= mask.cpu().numpy() if is_tensor(mask) else mask
    if wrong.any():
        place = int(wrong.reshape(-1).argmax())
        raise ValueError(
            f"{op}: teacher_noise must be finite and >= 0, got {held.reshape(-1)[place]} "
            f"at row {place}"
        )
