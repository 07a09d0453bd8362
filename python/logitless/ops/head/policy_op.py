"""torch op of the policy loss from hidden x weight: forward and backward at once.

Rows go through in chunks whose logits are all held, or with tail_mass > 0 all at once with as many
held as there is room for: statistics, the loss's coefficients, gradients. What is left for the
backward is to multiply the gradients by that of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends import memory, registry
from logitless.backends.row_kernels.rows import Rows
from logitless.inputs.options import DROPPED, Tail
from logitless.ops.head.adapter.joined import joined, matrices
from logitless.ops.head.backward import (
    Forward,
    Gradients,
    Head,
    Served,
    active,
    backward,
    forward,
    new_state,
    weight_gradient,
    wide_dtype,
    zeros_like,
)
from logitless.ops.head.planner.late import answer, planned
from logitless.ops.head.sparse import TopKSupport
from logitless.ops.head.tiling import Tiling
from logitless.ops.losses.op import (
    LossInputs,
    LossTensors,
    loss_and_metrics,
    loss_and_metrics_fake,
    token_loss,
)
from logitless.ops.losses.op import metric_names as loss_metric_names
from logitless.ops.rows.arguments import RowArguments, RowGradients
from logitless.ops.rows.outputs import differentiable_outputs, empty_outputs, requested
from logitless.ops.rows.whole import flat
from logitless.ops.sharding.shard import Shard
from logitless.ops.torch_op import Autograd, Needs, WrittenList, register

OP = "linear_policy_loss"
# After the metrics of the loss, with tail_mass > 0: largest and summed bound of
# ||error of d(logits)||_1 over the rows served from their kept entries, the share of such rows
# among those with a gradient, and the mean number of entries kept of each.
SUPPORT_METRICS = (
    "actor/support_bound_max", "actor/support_bound_sum", "actor/support_rows",
    "actor/support_kept",
)  # fmt: skip


class HeadPolicyLoss(NamedTuple):
    loss: Tensor  # 0-d
    metrics: Tensor  # [names]
    logp: Tensor  # shaped like the mask
    entropy: Tensor
    d_hidden: Tensor  # empty where none is asked for, and so the next two
    d_weight: Tensor
    d_bias: Tensor


class HeadPolicyExtras(NamedTuple):
    """The same of a call that asks for extras or has an adapter. An output costs 3 us, whether or
    not it is empty."""

    loss: Tensor
    metrics: Tensor
    logp: Tensor
    entropy: Tensor
    d_hidden: Tensor
    d_weight: Tensor
    d_bias: Tensor
    d_up: Tensor
    extras: Tensor  # float64 [names, N]


class _Arguments(NamedTuple):
    hidden: Tensor
    weight: Tensor
    rows: RowArguments
    loss: LossInputs
    tail: Tail
    chunk_rows: int
    needs: list[bool]
    tiling: Tiling
    shard: Shard
    extras: str = ""  # and "lse", which is none to a caller
    up: Tensor | None = None


class _Saved(NamedTuple):
    d_hidden: Tensor
    d_weight: Tensor
    d_bias: Tensor
    needs: list[bool]
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]
    d_up: Tensor | None
    of_up: torch.dtype | None
    looks: bool  # whether the backward looks at the gradient of the loss


def metric_names(loss: LossInputs, tail: Tail) -> tuple[str, ...]:
    names = loss_metric_names(loss)
    return (*names, *SUPPORT_METRICS) if tail.mass else names


def _forward(
    hidden: Tensor,
    weight: Tensor,
    rows: RowArguments,
    loss: LossInputs,
    tail: Tail,
    chunk_rows: int,
    needs: list[bool],
    tiling: Tiling,
    shard: Shard,
) -> HeadPolicyLoss:
    given = _Arguments(hidden, weight, rows, loss, tail, chunk_rows, needs, tiling, shard)
    return HeadPolicyLoss(*_both_ways(given, None)[:-1])


def _forward_with_extras(
    hidden: Tensor,
    weight: Tensor,
    rows: RowArguments,
    loss: LossInputs,
    tail: Tail,
    chunk_rows: int,
    needs: list[bool],
    tiling: Tiling,
    shard: Shard,
    extras: str,  # names with commas between
    up: Tensor | None,  # of adapters, whose other factor is the last columns of hidden
) -> HeadPolicyExtras:
    given = _Arguments(
        hidden, weight, rows, loss, tail, chunk_rows, needs, tiling, shard, extras, up
    )
    asked = _Extras(extras, hidden) if extras else None
    table = hidden.new_empty(0, dtype=torch.float64) if asked is None else asked.table
    return HeadPolicyExtras._make([*_both_ways(given, asked), table])


def _both_ways(given: _Arguments, asked: _Extras | None) -> list[Tensor]:
    """Forward and backward of all rows: the results up to the gradient of an adapter's B."""
    hidden, weight, rows, loss, tail, chunk_rows, needs, tiling, shard, _, up = given
    hidden, weight = hidden.detach(), weight.detach()
    found, chunk_rows = _planned(tiling, hidden, weight, chunk_rows, tail)
    head = Head(hidden, joined(weight, up), found, shard, tail)
    of_active, index = active(rows.rows(OP), found)
    values = _Values(hidden, loss)
    work = _Work(head, needs, chunk_rows, of_active.n)
    of_rows = asked is not None and asked.of_rows
    support_metrics: Tensor | None = None
    for part, ids in _chunks(of_active, index, chunk_rows):
        f = work.forward(part, ids, extras=of_rows)
        out = (
            requested(empty_outputs(part.n, True, hidden), True)
            if of_rows
            else values.outputs(part.n, ids)
        )
        part.finalize(f.state, head.vocab, row_ids=ids, **out)
        if f.support is not None:
            f.support.measure(part, f.state, head.vocab, tail, shard, f.store)
        if asked is not None:
            asked.take(ids, out, f.support)
        g = values.gradients(ids, out, all_rows=part.n == of_active.n)
        served = Served.of(f, g, tail)
        work.backward(f, g, served)
        if f.support is not None:
            support_metrics = _support_metrics(f, g, served)
    loss_value, metrics = loss_and_metrics(values.whole().sums, loss, hidden)
    if tail.mass:
        if support_metrics is None:
            support_metrics = _no_support_metrics(True, metrics)
        metrics = torch.cat([metrics, support_metrics.to(metrics.device)])
    gradients = work.gradients(rounded=bool(tiling.question))
    return [loss_value, metrics, *values.shaped, *gradients]


def _planned(
    tiling: Tiling, hidden: Tensor, weight: Tensor, chunk_rows: int, tail: Tail
) -> tuple[Tiling, int]:
    """The tiling and the rows of a chunk to compute with. Where a graph of any length has come to a
    length for which one pass is not the plan, all rows are one chunk, and logits that are not kept
    are made again."""
    found = planned(tiling, hidden, weight)
    if tail.mass:
        return found, hidden.shape[0]
    if tiling.question:
        chunk_rows = answer(tiling, hidden, weight).chunk_rows
        if not chunk_rows:
            return found, hidden.shape[0]
    return found._replace(kept=weight.shape[0]), chunk_rows


def _chunks(
    rows: Rows, index: Tensor | None, chunk_rows: int
) -> Iterator[tuple[Rows, Tensor | None]]:
    """The rows of each chunk and their places in hidden; None: all rows of it."""
    if rows.n <= chunk_rows:
        if rows.n:
            yield rows, index
        return
    for start in range(0, rows.n, chunk_rows):
        chunk = slice(start, min(start + chunk_rows, rows.n))
        if index is None:
            places = torch.arange(chunk.start, chunk.stop, device=rows.targets.device)
            yield rows.part(chunk), places
        else:
            yield rows.part(chunk), index[chunk]


class _Values:
    """logp and entropy of all tokens, as far as they are known. Raises for whatever is wrong with
    the loss's shapes and dtypes, and for what it misses, before any product is made."""

    def __init__(self, hidden: Tensor, loss: LossInputs) -> None:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.logp, self.entropy = (hidden.new_zeros(loss.mask.shape, dtype=wide) for _ in range(2))
        self.flat = {"logp": flat(self.logp), "entropy": flat(self.entropy)}
        self.hidden = hidden
        self.rows = loss.resolved(wide)
        self.found: LossTensors | None = None

    @property
    def shaped(self) -> tuple[Tensor, Tensor]:
        return self.logp, self.entropy

    def whole(self) -> LossTensors:
        """Of all tokens, once they are known."""
        if self.found is None:
            self.found = self.rows.whole(*self.shaped)
        return self.found

    def outputs(self, n: int, ids: Tensor | None) -> dict[str, Tensor]:
        """Memory for the results of n rows: of all rows their place."""
        if ids is None:
            return {**self.flat, "lse": self.logp.new_empty(n)}
        return differentiable_outputs(n, self.hidden)

    def gradients(
        self, ids: Tensor | None, out: dict[str, Tensor], *, all_rows: bool
    ) -> RowGradients:
        """The coefficients of some rows, whose results are `out`."""
        for name, values in self.flat.items():
            if ids is not None:
                values.index_copy_(0, ids, out[name])
            elif out[name] is not values:
                values.copy_(out[name])
        if all_rows:
            # also of a loss whose coefficients need all of them
            _, g_logp, g_entropy = self.whole()
            g = RowGradients(g_logp, g_entropy)
            g = g if ids is None else g.select(ids)
        else:
            assert ids is not None
            _, g_logp, g_entropy = token_loss(out["logp"], out["entropy"], self.rows.rows(ids))
            g = RowGradients(g_logp, g_entropy)
        return RowGradients.of(*g)


class _Extras:
    """What is asked for beside logp and entropy, of all rows: 0 (argmax: -1) of masked ones."""

    def __init__(self, names: str, hidden: Tensor) -> None:
        self.names = tuple(names.split(","))
        # lse comes with logp
        self.of_rows = any(name not in (*DROPPED, "lse") for name in self.names)
        self.table = _extras_table(names, hidden).zero_()
        if "argmax" in self.names:
            self.table[self.names.index("argmax")] = -1

    def take(self, ids: Tensor | None, out: dict[str, Tensor], support: TopKSupport | None) -> None:
        """Of some rows, at these places. Exact rows drop nothing."""
        for row, name in zip(self.table, self.names, strict=True):
            if name in DROPPED and support is None:
                continue
            values = getattr(support, name) if name in DROPPED else out[name]
            if ids is None:
                row.copy_(values)
            else:
                row.index_copy_(0, ids, values.double())


def _extras_table(names: str, hidden: Tensor) -> Tensor:
    return hidden.new_empty(names.count(",") + 1, hidden.shape[0], dtype=torch.float64)


class _Work:
    """Memory of the chunks, and the sums of gradients over them."""

    def __init__(self, head: Head, needs: list[bool], chunk_rows: int, n: int) -> None:
        self.head, self.needs, self.n = head, needs, n
        hidden, tiling = head.hidden, head.tiling
        held = min(chunk_rows, n)
        self.kept = memory.buffer(tiling.stored(held), tiling.dtype, hidden)
        self.state = new_state(held, hidden)
        self.support = TopKSupport.empty(held, head.tail, hidden.device) if head.tail.mass else None
        self.dtypes = _gradient_dtypes(hidden, chunk_rows >= hidden.shape[0])
        of_hidden, _, of_bias = self.dtypes
        self.d_hidden = memory.buffer_like(hidden, of_hidden).zero_() if needs[0] else None
        self.d_weight: Tensor | None = None
        self.weight, self.up = matrices(head.weight)
        self.d_up: Tensor | None = None
        self.started = False
        self.d_bias = hidden.new_zeros(head.weight.shape[0], dtype=of_bias) if needs[2] else None

    def forward(self, part: Rows, ids: Tensor | None, *, extras: bool) -> Forward:
        return forward(self.head, part, ids, self.kept, self.state, self.support, extras=extras)

    def backward(self, f: Forward, g: RowGradients, served: Served) -> None:
        if served.none:
            return
        started, self.started = self.started, True
        if self.needs[1] and not started:
            self.d_weight = weight_gradient(self.weight, self.dtypes[1], served)
        if self.up is not None and not started:
            self.d_up = weight_gradient(self.up, wide_dtype(self.head.hidden), served)
        out = Gradients(self.d_hidden, self.d_weight, self.d_bias, self.d_up)
        whole = f.rows.n == self.n
        backward(self.head, f, g, served, out, started=started, whole=whole, rescale=True)

    def gradients(self, *, rounded: bool) -> list[Tensor]:
        """Empty where none is asked for. A graph of any length has d_weight in one dtype."""
        d_weight, d_up, wide = self.d_weight, self.d_up, wide_dtype(self.head.hidden)
        if d_weight is None and self.needs[1]:
            d_weight = zeros_like(self.weight, self.dtypes[1])
        if d_up is None and self.up is not None:
            d_up = zeros_like(self.up, wide)
        if d_weight is not None and rounded:
            d_weight = d_weight.to(self.dtypes[0])
        found = (self.d_hidden, d_weight, self.d_bias, d_up)
        return [
            self.head.hidden.new_empty(0, dtype=dtype) if x is None else x
            for x, dtype in zip(found, (*self.dtypes, wide), strict=True)
        ]


def _gradient_dtypes(hidden: Tensor, one_chunk: bool) -> tuple[torch.dtype, ...]:
    """A d_weight that is not complete yet is not rounded; nor is float16, before the gradient of
    the loss is known."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    unscaled = wide if hidden.dtype == torch.float16 else hidden.dtype
    return unscaled, unscaled if one_chunk else wide, wide


def _no_support_metrics(none: bool, like: Tensor) -> Tensor:
    """Of no sparse row. Where no row has a gradient, none went without being served."""
    found = like.new_zeros(len(SUPPORT_METRICS), dtype=torch.float32)
    found[SUPPORT_METRICS.index("actor/support_rows")].fill_(float(none))
    return found


def _support_metrics(f: Forward, g: RowGradients, served: Served) -> Tensor:
    rows, sparse = f.rows, served.sparse
    assert f.support is not None
    if not sparse.shape[0]:
        return _no_support_metrics(served.none, f.state)
    scale = rows.scale if rows.row_scale is None else rows.row_scale[sparse]
    bound = f.support.bound(g)[sparse] * scale * rows.pre
    kept = f.support.counts[sparse].double().mean()
    share = kept.new_full((), sparse.shape[0] / (sparse.shape[0] + served.dense.shape[0]))
    return torch.stack([bound.max(), bound.sum(), share, kept]).float()


def _forward_fake(
    hidden: Tensor,
    weight: Tensor,
    rows: RowArguments,
    loss: LossInputs,
    tail: Tail,
    chunk_rows: int,
    needs: list[bool],
    tiling: Tiling,
    shard: Shard,
) -> HeadPolicyLoss:
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    values = (hidden.new_empty(loss.mask.shape, dtype=wide) for _ in range(2))
    scalars = loss_and_metrics_fake(metric_names(loss, tail), hidden)
    one_chunk = bool(tiling.question or tail.mass) or chunk_rows >= hidden.shape[0]
    dtypes = _gradient_dtypes(hidden, one_chunk)
    sizes = (hidden, weight, weight[:, 0])
    gradients = (
        torch.empty_like(x, dtype=dtype) if need else hidden.new_empty(0, dtype=dtype)
        for x, dtype, need in zip(sizes, dtypes, needs, strict=True)
    )
    return HeadPolicyLoss(*scalars, *values, *gradients)


def _fake_with_extras(hidden: Tensor, *rest: Any) -> HeadPolicyExtras:
    *given, extras, up = rest
    wide = wide_dtype(hidden)
    d_up = hidden.new_empty(0, dtype=wide) if up is None else torch.empty_like(up, dtype=wide)
    table = _extras_table(extras, hidden) if extras else hidden.new_empty(0, dtype=torch.float64)
    return HeadPolicyExtras(*_forward_fake(hidden, *given), d_up, table)


def _scale(gradients: WrittenList, by: Tensor, looks: bool) -> None:
    # a Python number, or one with a dimension, multiplies in float32, whatever the tensor stores
    factor = by.item() if looks else by.view(1)
    if not looks or factor != 1.0:
        for gradient in gradients:
            gradient.mul_(factor)


_scale_op = register("scale_gradients_", _scale, lambda *_: None)


def _save(given: _Arguments, out: HeadPolicyLoss) -> _Saved:
    dtypes = (given.hidden.dtype, given.weight.dtype, out.d_bias.dtype)
    gradients = out.d_hidden, out.d_weight, out.d_bias
    return _Saved(*gradients, given.needs, dtypes, None, None, _looks(given))


def _save_with_extras(given: _Arguments, out: HeadPolicyExtras) -> _Saved:
    dtypes = (given.hidden.dtype, given.weight.dtype, out.d_bias.dtype)
    gradients, up = (out.d_hidden, out.d_weight, out.d_bias), given.up
    d_up, of_up = (None, None) if up is None else (out.d_up, up.dtype)
    return _Saved(*gradients, given.needs, dtypes, d_up, of_up, _looks(given))


def _looks(given: _Arguments) -> bool:
    """For a number of a device the host would wait: a product with 1 costs less."""
    return not registry.get(given.rows.backend).asynchronous


def _backward(saved: _Saved, upstream: HeadPolicyLoss, needs: Needs) -> dict[str, Tensor | None]:
    names, gradients = ("hidden", "weight", "rows.bias"), list(saved[:3])
    d_up = saved.d_up
    _scale_op(gradients if d_up is None else [*gradients, d_up], upstream.loss, saved.looks)
    found = {
        name: gradient.to(dtype) if need else None
        for name, gradient, dtype, need in zip(
            names, gradients, saved.dtypes, saved.needs, strict=True
        )
    }
    return found if d_up is None else {**found, "up": d_up.to(saved.of_up)}


_AUTOGRAD = Autograd(OP, ("loss",), _save, _backward, lambda saved: True)
head_policy_loss = register(OP, _forward, _forward_fake, autograd=_AUTOGRAD)
head_policy_extras = register(
    f"{OP}_extras",
    _forward_with_extras,
    _fake_with_extras,
    autograd=_AUTOGRAD._replace(save=_save_with_extras),
)
