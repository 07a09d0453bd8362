"""torch op of `linear_sample`: what a graph of torch.compile holds in place of the draw itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitless.inputs.options import ComputeOptions
from logitless.ops.linear_sample import Noise, draw
from logitless.ops.losses.tracing import fixed
from logitless.ops.sampling.truncated import Truncation
from logitless.ops.sharding.shard import SHARD, Shard
from logitless.ops.torch_op import register


def sample(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    chain: tuple[Tensor | None, Tensor | None, float, float, float],
    compute: ComputeOptions,
    truncation: Truncation,
    noise: Noise,
    shard: Shard,
) -> tuple[Tensor, Tensor, Tensor]:
    """`draw` as a node of a graph, its arguments as the schema takes them."""
    budget = None if compute.memory_budget is None else str(fixed(compute.memory_budget))
    top_p = None if truncation.top_p is None else float(truncation.top_p)
    # A schema's int has 63 bits and a sign.
    seed = noise.seed if noise.seed < 1 << 63 else noise.seed - (1 << 64)
    drawn: tuple[Tensor, Tensor, Tensor] = _op(
        op, hidden, weight, *chain, budget, compute.logits_dtype, compute.batch_invariant,
        truncation.top_k, top_p, seed, noise.step, noise.row_ids, *shard,
    )  # fmt: skip
    return drawn


def _kernel(op: str, hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    chain, (budget, dtype, invariant, top_k, top_p, seed, step, row_ids) = args[:5], args[5:13]
    return tuple(
        draw(
            op, hidden, weight, chain, ComputeOptions(budget, 0.0, dtype, invariant),
            Truncation(top_k, top_p), Noise(seed % (1 << 64), step, row_ids), Shard(*args[13:]),
        )
    )  # fmt: skip


def _fake(op: str, hidden: Tensor, *_: Any) -> tuple[Tensor, ...]:
    n, wide = hidden.shape[0], torch.float64 if hidden.dtype == torch.float64 else torch.float32
    dtypes = (torch.int64, wide, wide)
    return tuple([hidden.new_empty(n, dtype=dtype) for dtype in dtypes])


_op = register(
    "linear_sample(str op, Tensor hidden, Tensor weight, Tensor? bias, Tensor? row_scale, "
    "float scale, float pre, float softcap, str? memory_budget, ScalarType? logits_dtype, "
    "bool batch_invariant, SymInt? top_k, float? top_p, SymInt seed, SymInt step, Tensor row_ids, "
    f"{SHARD}) -> (Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
)
