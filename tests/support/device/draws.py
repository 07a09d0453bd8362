"""Draws by the kernels of a backend, from logits that two of them are given alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from logitless.backends import registry
from logitless.backends.row_kernels.rows import SAMPLE_STATE, STATE, Rows
from logitless.ops import torch_op
from logitless.ops.sampling.kept_bits import KeptBits
from tests.support.device.devices import Device

KEY: dict[str, Any] = {"seed": 2**64 - 3, "step": 2**43 - 1}


class Drawn(NamedTuple):
    token: Tensor  # [n]
    score: Tensor  # [n] float64, of the best block
    y: Tensor  # [n] float64, of the token
    state: Tensor  # [n, STATE]


class DrawnFromSets(NamedTuple):
    token: Tensor
    sets: list[list[int]]
    y: Tensor
    logp: Tensor | None  # within the sets


def rows_of(backend: str, n: int, device: str, options: dict[str, Any]) -> Rows:
    """Rows with the chain in the terms of the kernels."""
    scale, cap = options.get("logit_scale", 1.0), options.get("softcap", 0.0)
    temperature, bias = options.get("temperature", 1.0), options.get("bias")
    factor = (1.0 if cap else scale) / torch.as_tensor(temperature).double()
    return Rows(
        registry.get(backend), n, torch.full((n,), -1, device=device), None,
        factor.to(device) if factor.ndim else None, 1.0 if factor.ndim else float(factor),
        None if bias is None else bias.float().to(device), scale if cap else 1.0, cap, 1,
    )  # fmt: skip


def ids_of(n: int) -> Tensor:
    """Of both signs, and far apart."""
    return torch.arange(n) * 2**40 - 7


def sampled(
    backend: str, device: str, logits: Tensor, cuts: tuple[int, ...] = (), **options: Any
) -> Drawn:
    """A token of each row, in tiles of the columns between the cuts."""
    n, vocab = logits.shape
    logits, key = logits.to(device), {**KEY, **options.pop("key", {})}
    rows = rows_of(backend, n, device, options)
    kernels = registry.get(backend).sampling
    assert kernels is not None
    state = torch.empty(n, STATE, dtype=torch.float64, device=device)
    best = torch.empty(n, SAMPLE_STATE, dtype=torch.float64, device=device)
    edges = [0, *cuts, vocab]
    for start, stop in itertools.pairwise(edges):
        kernels.sample(
            rows, logits[:, start:stop], state, best, start=start, first=start == 0,
            row_ids=ids_of(n).to(device), **key,
        )  # fmt: skip
    best, state = best.cpu(), state.cpu()
    return Drawn(best[:, 1].long(), best[:, 0], state[:, 6], state)


def truncated(
    backend: str, device: str, logits: Tensor, truncation: dict[str, Any], **options: Any
) -> DrawnFromSets:
    """The same from the top_k, top_p and min_p of whole rows."""
    n, vocab = logits.shape
    logits, rows = logits.to(device), rows_of(backend, n, device, options)
    kernels = registry.get(backend).sampling
    assert kernels is not None
    state = torch.empty(n, STATE, dtype=torch.float64, device=device)
    rows.forward(logits, state)
    token = torch.empty(n, dtype=torch.int64, device=device)
    limits = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **truncation}
    given = {"logits": logits, "row_ids": ids_of(n).to(device), **limits, **KEY}
    if kernels.keeps_largest:
        sizes, ids = token.clone(), torch.empty(n, vocab, dtype=torch.int32)
        kernels.draw_truncated(rows, state, token, set_sizes=sizes, set_ids=ids, **given)
        sets = [sorted(x[:k].tolist()) for x, k in zip(ids, sizes.tolist(), strict=True)]
        return DrawnFromSets(token, sets, state[:, 6], None)
    kept = KeptBits.empty(n, vocab, logits)
    kernels.draw_truncated(rows, state, token, **given, **kept.outputs(slice(0, n)))
    found, offsets = (x.cpu() for x in kept.csr)
    sets = [x.tolist() for x in found.tensor_split(offsets[1:-1])] if n else []
    return DrawnFromSets(token.cpu(), sets, state[:, 6].cpu(), kept.logp.cpu())


@contextmanager
def drawing_there(device: Device) -> Iterator[None]:
    """`linear_sample` of the emulator's tensors is its own, as a device's is."""
    with pytest.MonkeyPatch.context() as patch:
        if device.name == "cpu":
            patch.setattr(torch_op, "backend_with", lambda need, tensor: device.backend)
        yield
