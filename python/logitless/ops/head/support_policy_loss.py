"""torch op of the policy loss with tail_mass > 0: one forward, and gradients from kept entries.

All rows are scored before any gradient is made, and no logits are kept, so that every loss can be
served, those of whole sequences and selections included.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.ops.head.engine import Upstream
from logitless.ops.head.late_plan import planned
from logitless.ops.head.policy_op import (
    LOSS_ARGUMENTS,
    first_values,
    power_of_two,
    scale_backward,
    setup_scaling,
)
from logitless.ops.head.support_passes import (
    Folded,
    Served,
    fold_support,
    folded_rows,
    measure,
    split,
    unfold_support,
    weight_gradient,
)
from logitless.ops.head.tiling import TILES, Tiles
from logitless.ops.losses.op import (
    LOSS,
    LossArguments,
    coefficients,
    loss_and_metrics,
    loss_and_metrics_fake,
)
from logitless.ops.rows.op import N_ROWS, ROWS, make_rows
from logitless.ops.rows.outputs import empty_outputs, requested
from logitless.ops.sharding.shard import LATE, SHARD, Shard, tiling_of
from logitless.ops.torch_op import register

OP = "linear_policy_loss"
# After the metrics of the loss: largest and summed bound of ||error of d(logits)||_1 over the rows
# served from their kept entries, the share of such rows among those with a gradient, and the mean
# number of entries kept of each.
SUPPORT_METRICS = (
    "actor/support_bound_max", "actor/support_bound_sum", "actor/support_rows",
    "actor/support_kept",
)  # fmt: skip


class _Arguments(NamedTuple):
    rows: tuple[Any, ...]
    loss: LossArguments
    tail_mass: float
    needs: tuple[bool, bool, bool]
    tiles: Tiles
    shard: Shard

    @classmethod
    def of(cls, args: tuple[Any, ...]) -> _Arguments:
        rows, rest = args[:N_ROWS], args[N_ROWS:]
        tail_mass, needs, *tiling = rest[LOSS_ARGUMENTS:]
        loss = LossArguments(*rest[:LOSS_ARGUMENTS])
        return cls(rows, loss, tail_mass, needs, *tiling_of(tuple(tiling)))

    def gradient_dtypes(self, hidden: Tensor) -> tuple[torch.dtype, ...]:
        """What float16 would round is not rounded before the gradient of the loss is known."""
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        unscaled = wide if hidden.dtype == torch.float16 else hidden.dtype
        return unscaled, unscaled, wide


def support_metric_names(arguments: LossArguments) -> tuple[str, ...]:
    return (*arguments.metric_names(entropy=True), *SUPPORT_METRICS)


def _forward(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    a = _Arguments.of(args)
    a = a._replace(tiles=planned(a.tiles, hidden, weight))
    hidden, weight = hidden.detach(), weight.detach()
    vocab, shape = a.shard.vocab(len(weight)), a.loss.mask.shape
    index = a.loss.mask.reshape(-1).nonzero().squeeze(1)
    logp, entropy = first_values(hidden, a.loss)
    folded = folded_rows(make_rows(*a.rows, op=OP), index, hidden, a.shard)
    n = folded.rows.n
    fold_support(hidden, weight, folded, a.tiles, a.tail_mass, False)
    out = empty_outputs(n, False, hidden)
    folded.rows.finish(folded.state[:n], vocab, row_ids=index, **requested(out, False))
    measure(folded, vocab, a.tail_mass, a.tiles.dtype)
    logp[index], entropy[index] = out["logp"], out["entropy"]
    _, result = coefficients(logp.view(shape), entropy.view(shape), a.loss)
    g = Upstream(*(None if x is None else torch.from_numpy(x).reshape(-1)[index].double()
                   for x in (result.g_logp, result.g_entropy)))  # fmt: skip
    served = split(folded, g, a.tail_mass)
    gradients = _gradients(hidden, weight, a, served)
    power = _power(a.tiles, g, served)
    unfold_support(
        hidden, weight, folded, g, served, a.tiles, a.tail_mass, a.needs, gradients, power
    )
    names = a.loss.metric_names(entropy=True)
    loss, metrics = loss_and_metrics(result, names, logp)
    metrics = torch.cat([metrics, _support_metrics(folded, g, served)])
    return (loss, metrics, logp.view(shape), entropy.view(shape), *gradients)


def _power(tiles: Tiles, g: Upstream, served: Served) -> float:
    if tiles.dtype != torch.float16 or not len(served.dense):
        return 1.0
    return power_of_two(Upstream(**g.at(served.dense)))


def _support_metrics(folded: Folded, g: Upstream, served: Served) -> Tensor:
    rows, sparse = folded.rows, served.sparse
    if not len(sparse):
        # Without any row that has a gradient, none went without being served.
        return torch.tensor([0.0, 0.0, float(not len(served.dense)), 0.0])
    scale = rows.scale if rows.row_scale is None else rows.row_scale[sparse]
    bound = folded.support.bound(rows.n, g)[sparse] * scale * rows.pre
    kept = folded.support.kept[sparse].double().mean()
    share = torch.tensor(len(sparse) / (len(sparse) + len(served.dense)))
    return torch.stack([bound.max(), bound.sum(), share, kept]).float()


def _gradients(
    hidden: Tensor, weight: Tensor, a: _Arguments, served: Served
) -> tuple[Tensor, Tensor, Tensor]:
    of_hidden, of_weight, of_bias = a.gradient_dtypes(hidden)
    nothing = hidden.new_empty(0)
    return (
        hidden.new_zeros(hidden.shape if a.needs[0] else (0,), dtype=of_hidden),
        weight_gradient(weight, of_weight, served) if a.needs[1] else nothing.to(of_weight),
        hidden.new_zeros(len(weight) if a.needs[2] else 0, dtype=of_bias),
    )


def _forward_fake(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
    a = _Arguments.of(args)
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    values = (hidden.new_empty(a.loss.mask.shape, dtype=wide) for _ in range(2))
    sizes = (hidden.shape, weight.shape, weight.shape[:1])
    gradients = (
        hidden.new_empty(size if need else (0,), dtype=dtype)
        for size, dtype, need in zip(sizes, a.gradient_dtypes(hidden), a.needs, strict=True)
    )
    return (*loss_and_metrics_fake(support_metric_names(a.loss), hidden), *values, *gradients)


support_policy_loss = register(
    f"linear_support_policy_loss(Tensor hidden, Tensor weight, {ROWS}, {LOSS}, float tail_mass, "
    f"bool[] needs, {TILES}, {SHARD}, {LATE}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup=setup_scaling,
    backward=scale_backward,
)
