"""Logits of a few columns of a head: of a tile, or of tokens that each row names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import logitless as ll
from logitless.integrations.trl.call import HeadCall

# Entries of the vocabulary whose logits are made at once where each of them is needed.
TILE = 4096
# Numbers of weight that are gathered at once: 16 MiB of float32.
GATHERED = 1 << 22


def candidate_logp(
    call: HeadCall,
    ids: Tensor,  # [*rows, K] int64
    mask: Tensor | None = None,  # [*rows] bool
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """(log-probs [*rows, K] of the ids that each row names, entropies [*rows]), with gradients.

    Rows outside the mask have finite numbers that mean nothing. options: of linear_token_stats.
    """
    stats = ll.linear_token_stats(
        call.hidden, call.weight, ids[..., 0], mask=mask, **call.options, **options
    )
    logits = chained(_named_logits(call, ids), call.options)
    return logits - stats.lse[..., None], stats.entropy


@torch.no_grad()
def likeliest(call: HeadCall, k: int) -> Tensor:  # [*rows, K]
    """Ids of the k largest logits of each row."""
    rows = call.hidden.flatten(0, -2)
    best = torch.empty(len(rows), 0, device=rows.device)
    ids = best.long()
    for tile in tiles(len(call.weight)):
        logits = chained(tile_logits(call, rows, tile), call.options)
        places = torch.arange(tile.start, tile.stop, device=rows.device).expand_as(logits)
        logits, places = torch.cat((best, logits), -1), torch.cat((ids, places), -1)
        best, at = logits.topk(min(k, logits.shape[-1]), dim=-1)
        ids = places.gather(-1, at)
    return ids.reshape(*call.hidden.shape[:-1], -1)


def tiles(vocab: int) -> Iterator[slice]:
    return (slice(start, min(start + TILE, vocab)) for start in range(0, vocab, TILE))


def tile_logits(call: HeadCall, rows: Tensor, tile: slice) -> Tensor:  # [N, tile]
    """Of rows [N, H], before the chain, in float32."""
    bias, rows = call.options["bias"], rows.float()
    raw = rows @ call.weight[tile].float().T
    if bias is not None:
        raw += bias[tile]
    for A, B, factor in call.options.get("adapter", []):
        raw += factor * (rows @ A.float().T @ B[tile].float().T)
    return raw


def chained(raw: Tensor, options: dict[str, Any]) -> Tensor:
    """Scale, softcap and temperature."""
    z, cap = options["logit_scale"] * raw, options["softcap"]
    z = z if cap is None else cap * torch.tanh(z / cap)
    found: Tensor = z / options["temperature"]
    return found


def _named_logits(call: HeadCall, ids: Tensor) -> Tensor:  # [*rows, K]
    flat, rows = ids.flatten(0, -2), call.hidden.flatten(0, -2)
    raw: Tensor = _Named.apply(rows, call.weight, flat)  # type: ignore[no-untyped-call]
    if call.options["bias"] is not None:
        raw = raw + call.options["bias"][flat]
    for A, B, factor in call.options.get("adapter", []):
        raw = raw + factor * _Named.apply(rows.to(A.dtype) @ A.T, B, flat)  # type: ignore[no-untyped-call]
    return raw.reshape(ids.shape)


class _Named(torch.autograd.Function):
    """hidden[n] . weight[ids[n, k]], [N, K], at least in float32.

    Rows of weight are gathered a block at a time, and once more in the backward.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, ids)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        out = torch.empty(ids.shape, dtype=dtype, device=hidden.device)
        for rows in _blocks(ids, weight):
            named = weight[ids[rows]].to(dtype)
            out[rows] = torch.einsum("nh,nkh->nk", hidden[rows].to(dtype), named)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        hidden, weight, ids = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = gradient.new_zeros(weight.shape) if ctx.needs_input_grad[1] else None
        for rows in _blocks(ids, weight):
            g = gradient[rows]
            if d_hidden is not None:
                d_hidden[rows] = torch.einsum("nk,nkh->nh", g, weight[ids[rows]].to(g.dtype)).to(
                    hidden.dtype
                )
            if d_weight is not None:
                outer = torch.einsum("nk,nh->nkh", g, hidden[rows].to(g.dtype))
                d_weight.index_add_(0, ids[rows].flatten(), outer.flatten(0, 1))
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None


def _blocks(ids: Tensor, weight: Tensor) -> Iterator[slice]:
    size = max(1, GATHERED // max(1, ids.shape[1] * weight.shape[1]))
    return (slice(start, start + size) for start in range(0, len(ids), size))
