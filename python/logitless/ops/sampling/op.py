"""torch op of `linear_sample`: what a graph of torch.compile holds in place of the draw itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from logitless.inputs.options import ComputeOptions
from logitless.ops.head.adapter.low_rank import LowRank
from logitless.ops.rows.arguments import Transform
from logitless.ops.sampling.draw import Noise, draw
from logitless.ops.sampling.truncated import Truncation
from logitless.ops.sharding.shard import Shard
from logitless.ops.symbols import fixed
from logitless.ops.torch_op import Symbol, register


class Draw(NamedTuple):
    """The options of a draw, as a schema takes them."""

    backend: str
    memory_budget: str | None
    logits_dtype: torch.dtype | None
    batch_invariant: bool
    top_k: Symbol | None
    top_p: float | None
    min_p: float | None
    # A schema's int has 63 bits and a sign.
    seed: Symbol
    step: Symbol


class Drawn(NamedTuple):
    token: Tensor  # [N] int64
    logp: Tensor
    entropy: Tensor


def sample(
    backend: str,
    hidden: Tensor,
    weight: Tensor,
    chain: Transform,
    compute: ComputeOptions,
    truncation: Truncation,
    noise: Noise,
    shard: Shard,
    adapter: LowRank | None = None,
) -> Drawn:
    """`draw` as a node of a graph."""
    budget = None if compute.memory_budget is None else str(fixed(compute.memory_budget))
    top_p, min_p = (None if p is None else float(p) for p in (truncation.top_p, truncation.min_p))
    seed = noise.seed if noise.seed < 1 << 63 else noise.seed - (1 << 64)
    asked = Draw(
        backend, budget, compute.logits_dtype, compute.batch_invariant, truncation.top_k, top_p,
        min_p, seed, noise.step,
    )  # fmt: skip
    low, up = (None, None) if adapter is None else adapter
    drawn: Drawn = _op(hidden, weight, chain, asked, noise.row_ids, shard, low, up)
    return drawn


def _kernel(
    hidden: Tensor,
    weight: Tensor,
    chain: Transform,
    asked: Draw,
    row_ids: Tensor,
    shard: Shard,
    low: Tensor | None,
    up: Tensor | None,
) -> Drawn:
    compute = ComputeOptions(asked.memory_budget, 0.0, asked.logits_dtype, asked.batch_invariant)
    truncation = Truncation(asked.top_k, asked.top_p, asked.min_p)
    noise = Noise(asked.seed % (1 << 64), asked.step, row_ids)
    adapter = None if low is None or up is None else LowRank(low, up)
    given = (asked.backend, hidden, weight, chain, compute, truncation, noise, shard, adapter)
    return Drawn(*draw(*given)[:3])


def _fake(hidden: Tensor, *_: object) -> Drawn:
    n, wide = hidden.shape[0], torch.float64 if hidden.dtype == torch.float64 else torch.float32
    dtypes = (torch.int64, wide, wide)
    return Drawn(*[hidden.new_empty(n, dtype=dtype) for dtype in dtypes])


_op = register("linear_sample", _kernel, _fake)
