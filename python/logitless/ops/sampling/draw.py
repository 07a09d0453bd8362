"""One token per row, drawn while tiles of logits stream by."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends import registry
from logitless.backends.base import Backend, SamplingKernels
from logitless.backends.forked import refuse_lost_threads
from logitless.backends.row_kernels.rows import SAMPLE_STATE, Rows
from logitless.inputs.options import ComputeOptions, LogitTransform
from logitless.inputs.records import changed
from logitless.ops.head.adapter.joined import Matrix, joined
from logitless.ops.head.adapter.low_rank import LowRank
from logitless.ops.head.backward import new_state
from logitless.ops.head.gemm import logit_tiles
from logitless.ops.head.inputs import realised_dtype
from logitless.ops.head.planner.plan import cached_plan
from logitless.ops.head.tiling import Tiling
from logitless.ops.rows.arguments import Transform, kernel_rows, transform
from logitless.ops.rows.outputs import differentiable_outputs
from logitless.ops.sampling.kept_bits import KeptBits
from logitless.ops.sampling.sharded import sample_shard
from logitless.ops.sampling.truncated import KeptSets, Truncation, draw_from_largest
from logitless.ops.sampling.whole_rows import draw_from_whole_rows
from logitless.ops.sharding.shard import Shard


class Noise(NamedTuple):
    """What the random numbers of a call are a function of."""

    seed: int
    step: int
    row_ids: Tensor  # [N] int64

    def of(self, chunk: slice) -> dict[str, Any]:
        """Arguments of the kernels that draw."""
        return {"seed": self.seed, "step": self.step, "row_ids": self.row_ids[chunk]}

    def at(self, index: Tensor) -> Noise:
        return self._replace(row_ids=self.row_ids[index])


def chain_of(op: str, head: LogitTransform, wide: bool, backend: str) -> Transform:
    return transform(op, head, None, wide, look=not registry.get(backend).asynchronous)


def draw(
    backend: str,
    hidden: Tensor,
    weight: Tensor,
    chain: Transform,
    compute: ComputeOptions,
    truncation: Truncation,
    noise: Noise,
    shard: Shard,
    adapter: LowRank | None = None,
) -> tuple[Tensor, Tensor, Tensor, KeptSets | KeptBits | None]:
    """(token, logp, entropy), [N] each, and what was drawn from where that is not everything."""
    refuse_lost_threads()
    served_by = registry.get(backend)
    n, vocab = len(hidden), shard.vocab(len(weight))
    dtype = realised_dtype(compute.logits_dtype, hidden, backend)
    machine = served_by.machine(hidden.device)
    limited = truncation.limits(vocab)
    keeps = limited and kernels_of(served_by).keeps_largest
    plan = cached_plan(
        machine, n, hidden.shape[1], shard.widest(len(weight)), hidden.dtype,
        compute.memory_budget, logits_dtype=dtype, backward=False, whole_blocks=True,
        batch_invariant=compute.batch_invariant,
        kept_entries=truncation.kept(vocab, machine) if keeps else 0,
        adapter_rank=0 if adapter is None else adapter.rank,
    )  # fmt: skip
    tiling = Tiling.of(plan, len(weight), hidden.dtype, dtype)
    # The tokens to score are still to be found.
    nobody = hidden.new_full((n,), -1, dtype=torch.int64)
    rows = kernel_rows("linear_sample", n, nobody, None, chain, backend)
    state: Tensor = new_state(n, hidden)
    sets: KeptSets | KeptBits | None = None
    matrix = joined(weight, None if adapter is None else adapter.up)
    h = hidden if adapter is None else adapter.joins(hidden)
    if limited:
        of_top = draw_from_largest if keeps else draw_from_whole_rows
        token, sets = of_top(h, matrix, rows, tiling, plan, truncation, noise, shard, state)
    else:
        token = _draw_whole(tiling.operand(h, None), matrix, rows, tiling, noise, shard, state)
    out = differentiable_outputs(n, hidden)
    changed(rows, targets=token).finalize(state, vocab, **out)
    return token, out["logp"], out["entropy"], sets


def _draw_whole(
    h: Tensor,
    weight: Matrix,
    rows: Rows,
    tiling: Tiling,
    noise: Noise,
    shard: Shard,
    state: Tensor,
) -> Tensor:  # [N] int64
    """Drawn from all of softmax(z); `state` is then as if the tokens had been the targets."""
    best = h.new_empty(rows.n, SAMPLE_STATE, dtype=torch.float64)
    kernels = kernels_of(rows.backend)

    def sample(start: int, chunk: slice, tile: Tensor) -> None:
        first = start == 0 and not shard.group
        kernels.sample(
            rows.part(chunk), tile, state[chunk], best[chunk], start=start, first=first,
            **noise.of(chunk),
        )  # fmt: skip

    if shard.group:
        rows = shard.entire(rows)
        sample_shard(h, weight, rows, tiling, shard, sample, state, best)
    else:
        for start, chunk, tile in logit_tiles(h, weight, rows.n, tiling, rows.backend):
            sample(start, chunk, tile)
    # A row without a finite logit drew nothing; `finalize` names it before it looks at the target.
    return best[:, 1].to(torch.int64)


def kernels_of(backend: Backend) -> SamplingKernels:
    assert backend.sampling is not None
    return backend.sampling
