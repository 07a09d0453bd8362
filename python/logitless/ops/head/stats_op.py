"""torch op over hidden x weight: statistics forward; backward by kept logits, by another product,
or with tail_mass > 0 from the largest entries of the rows that lose little by it.

Rows outside the mask never enter a product; rows whose upstream gradients are all zero never enter
a backward product. Of a sharded vocabulary each rank computes its own columns; their states are
gathered and merged once in the forward, and d_hidden is added up once in the backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends import memory
from logitless.inputs.options import DROPPED, Tail
from logitless.ops.head.adapter.joined import joined
from logitless.ops.head.backward import (
    Forward,
    Head,
    Served,
    active,
    backward,
    forward,
    new_gradients,
    new_state,
    wide_dtype,
)
from logitless.ops.head.planner.late import planned
from logitless.ops.head.sparse import TopKSupport
from logitless.ops.head.tiling import LogitStore, Tiling
from logitless.ops.rows.arguments import DIFFERENTIATED, RowArguments, RowGradients, RowOutputs
from logitless.ops.rows.outputs import empty_outputs, requested, scattered
from logitless.ops.sharding.shard import Shard
from logitless.ops.torch_op import Autograd, Needs, Written, register

OP = "linear_token_stats"


class HeadStats(NamedTuple):
    """What is dropped, [N] each, is empty with tail_mass = 0. From `state` on: what the backward is
    made of."""

    outputs: RowOutputs
    dropped_mass: Tensor
    dropped_entropy: Tensor
    state: Tensor  # [N, STATE] float64
    kept: Tensor  # logits, see LogitStore
    support: TopKSupport  # of no row with tail_mass = 0


class HeadGradients(NamedTuple):
    """Empty where none is asked for."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor


class AdapterGradients(NamedTuple):
    """The same of a call with an adapter."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    up: Tensor  # float32, or float64


class _Arguments(NamedTuple):
    hidden: Tensor
    weight: Tensor
    rows: RowArguments
    extras: bool
    tail: Tail
    tiling: Tiling
    shard: Shard
    up: Tensor | None
    places: Tensor | None


class _Saved(NamedTuple):
    hidden: Tensor
    weight: Tensor
    rows: RowArguments
    state: Tensor
    kept: Tensor
    support: TopKSupport
    tail: Tail
    tiling: Tiling
    shard: Shard
    up: Tensor | None
    places: Tensor | None


def _forward(
    hidden: Tensor,
    weight: Tensor,
    rows: RowArguments,
    extras: bool,
    tail: Tail,
    tiling: Tiling,
    shard: Shard,
    up: Tensor | None,  # of adapters, whose other factor is the last columns of hidden
    places: Tensor | None,  # see `counted`
) -> HeadStats:
    n = len(hidden)
    head = _head(hidden, weight, tiling, shard, tail, up)
    of_active, index = active(rows.rows(OP), head.tiling, places)
    support = TopKSupport.empty(n if tail.mass else 0, tail, hidden.device)
    kept = _logits_memory(head)
    state = new_state(n, hidden)
    f = forward(head, of_active, index, kept, state, support if tail.mass else None, extras=extras)
    out = empty_outputs(of_active.n, extras, hidden)
    of_active.finalize(f.state, head.vocab, row_ids=index, **requested(out, extras))
    dropped = state.new_empty(0), state.new_empty(0)
    if f.support is not None:
        f.support.measure(of_active, f.state, head.vocab, tail, shard, f.store)
        dropped = f.support.dropped_mass, f.support.dropped_entropy
    for name, value in zip(DROPPED, dropped, strict=True):
        out[name] = out["logp"].new_empty(len(value)).copy_(value)
    out = scattered(out, index, n)
    mass, entropy = (out.pop(name) for name in DROPPED)
    return HeadStats(RowOutputs(**out), mass, entropy, state, kept, support)


def _head(
    hidden: Tensor,
    weight: Tensor,
    tiling: Tiling,
    shard: Shard,
    tail: Tail,
    up: Tensor | None,
) -> Head:
    found = planned(tiling, hidden, weight)
    return Head(hidden.detach(), joined(weight.detach(), up), found, shard, tail)


def _logits_memory(head: Head) -> Tensor:
    tiling = head.tiling
    return memory.buffer(tiling.stored(len(head.hidden)), tiling.dtype, head.hidden)


def _forward_fake(
    hidden: Tensor,
    weight: Tensor,
    rows: RowArguments,
    extras: bool,
    tail: Tail,
    tiling: Tiling,
    shard: Shard,
    up: Tensor | None,
    places: Tensor | None,
) -> HeadStats:
    n = hidden.shape[0]
    out = empty_outputs(n, extras, hidden)
    mass, entropy = (out["logp"].new_empty(n if tail.mass else 0) for _ in DROPPED)
    # How many logits are kept the plan will tell.
    late = bool(tiling.question)
    held = torch.library.get_ctx().new_dynamic_size() if late else tiling.stored(n)
    kept = hidden.new_empty(held, dtype=tiling.dtype)
    support = TopKSupport.empty(n if tail.mass else 0, tail, hidden.device)
    return HeadStats(RowOutputs(**out), mass, entropy, new_state(n, hidden), kept, support)


def _backward_kernel(
    hidden: Tensor,
    weight: Tensor,
    rows: RowArguments,
    state: Tensor,
    kept: Written,
    support: TopKSupport,
    g: RowGradients,
    needs: list[bool],
    tail: Tail,
    tiling: Tiling,
    shard: Shard,
    places: Tensor | None,
) -> HeadGradients:
    head = _head(hidden, weight, tiling, shard, tail, None)
    return HeadGradients(*_gradients(head, rows, state, kept, support, g, needs, places)[:3])


def _adapter_backward_kernel(
    hidden: Tensor,
    weight: Tensor,
    rows: RowArguments,
    state: Tensor,
    kept: Written,
    support: TopKSupport,
    g: RowGradients,
    needs: list[bool],
    tail: Tail,
    tiling: Tiling,
    shard: Shard,
    places: Tensor | None,
    up: Tensor,
) -> AdapterGradients:
    head = _head(hidden, weight, tiling, shard, tail, up)
    return AdapterGradients(*_gradients(head, rows, state, kept, support, g, needs, places))


def _gradients(
    head: Head,
    rows: RowArguments,
    state: Tensor,
    kept: Tensor,
    support: TopKSupport,
    g: RowGradients,
    needs: list[bool],
    places: Tensor | None,
) -> list[Tensor]:
    """Those of hidden, weight, bias and an adapter's B."""
    of_active, index = active(rows.rows(OP), head.tiling, places)
    n = of_active.n
    f = Forward(
        of_active, index, None, state[:n], LogitStore(kept, n, head.tiling),
        support.first(n) if head.tail.mass else None,
    )  # fmt: skip
    g = g if index is None else g.select(index)
    served = Served.of(f, g, head.tail)
    out = new_gradients(head, f, served, needs)
    if not served.none:
        backward(head, f, g, served, out)
    return [head.hidden.new_empty(0) if x is None else x for x in out]


def _backward_fake(
    hidden: Tensor,
    weight: Tensor,
    rows: RowArguments,
    state: Tensor,
    kept: Tensor,
    support: TopKSupport,
    g: RowGradients,
    needs: list[bool],
    *_: object,
) -> HeadGradients:
    return HeadGradients(
        torch.empty_like(hidden) if needs[0] else hidden.new_empty(0),
        torch.empty_like(weight) if needs[1] else hidden.new_empty(0),
        weight.new_empty(weight.shape[0], dtype=wide_dtype(hidden))
        if needs[2]
        else hidden.new_empty(0),
    )


def _adapter_backward_fake(hidden: Tensor, *rest: Any) -> AdapterGradients:
    *given, up = rest
    d_up = torch.empty_like(up, dtype=wide_dtype(hidden))
    return AdapterGradients(*_backward_fake(hidden, *given), d_up)


_backward_op = register("linear_stats_backward", _backward_kernel, _backward_fake)
_adapter_backward_op = register(
    "linear_stats_adapter_backward", _adapter_backward_kernel, _adapter_backward_fake
)


def _save(given: _Arguments, out: HeadStats) -> _Saved:
    return _Saved(
        given.hidden, given.weight, given.rows, out.state, out.kept, out.support, given.tail,
        given.tiling, given.shard, given.up, given.places,
    )  # fmt: skip


def _backward(saved: _Saved, upstream: HeadStats, needs: Needs) -> dict[str, Tensor | None]:
    names = ("hidden", "weight", "rows.bias")
    needed = [needs(name) for name in names]
    g = RowGradients.of(*upstream.outputs[:3])
    *inputs, tail, tiling, shard, up, places = saved
    given = (*inputs, g, needed, tail, tiling, shard, places)
    gradients = _backward_op(*given) if up is None else _adapter_backward_op(*given, up)
    found = {
        name: gradient if need else None
        for name, gradient, need in zip(names, gradients[:3], needed, strict=True)
    }
    return found if up is None else {**found, "up": gradients[3].to(up.dtype)}


linear_stats = register(
    "linear_stats",
    _forward,
    _forward_fake,
    # A backward of kept logits writes over them; beside kept entries it takes copies.
    autograd=Autograd(OP, DIFFERENTIATED, _save, _backward, lambda saved: not saved.tail.mass),
)
