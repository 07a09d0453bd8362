"""Public op: per-token statistics of hidden x weight, without its logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from logitless.backends.registry import check_numpy_backend
from logitless.inputs.arrays import check_tokens, check_weight, framework, zeros_like
from logitless.inputs.checks import is_tensor, shown
from logitless.inputs.naming import public
from logitless.inputs.options import DROPPED, ComputeOptions, HeadOptions, check_extras
from logitless.inputs.weights import refuse_special_weight
from logitless.ops.head.plan import plan
from logitless.ops.rows.outputs import TokenStats
from logitless.ops.sharding.vocab_parallel import Meeting


@public
def linear_token_stats(
    hidden: Any,  # [N, H] or [B, T, H]
    weight: Any,  # [V, H]
    targets: Any,  # [N] or [B, T] int64
    *,
    mask: Any = None,  # bool, shape of targets
    temperature: Any = 1.0,  # float, or shaped like targets
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Any = None,  # [V]
    extras: tuple[str, ...] = (),
    vocab_group: Any = None,
    vocab_start: int = 0,
    memory_budget: int | str | None = None,
    tail_mass: float = 0.0,
    logits_dtype: Any = None,
    batch_invariant: bool = False,
    backend: str = "auto",
) -> TokenStats:
    """Log-probability and entropy of each token straight from the head's input.

    Equivalent plain code::

        token_stats(hidden @ weight.T, targets, ...)

    without ever holding `[tokens, V]`: vocabulary tiles of logits are made, folded into each
    row's moments and overwritten. First derivatives with respect to hidden, weight and bias, by one
    backward per forward (any number with tail_mass); they are exact, summed in float32. Only
    requested gradients are computed, rows outside the mask enter no product, and rows whose
    upstream gradients are zero enter no backward product.

    memory_budget: bytes or "256MiB" for scratch, kept tiles and float32 accumulators; None is
        min(512 MiB, the full logits). Logits that fit are kept for the backward (3 products in
        all instead of 4). See `logitless.plan`. Too small a budget is a ValueError naming the
        smallest that works.
    logits_dtype: dtype in which tiles of logits are realised. None is the product's own, here that
        of `hidden`: bfloat16 tiles cost errors of about 0.02-0.05 in logp at |z| = 20, as in every
        other implementation; torch.float32 avoids that and pays for float32 products.

    tail_mass: rows whose 64 largest entries and target hold all but so much of their probability
        get their gradient from those alone, not from dense products; values stay exact. extras
        "dropped_mass" and "dropped_entropy" say per row what that loses, and bound the error:
        docs/support.md. 0 is exact; at least 1e-5 otherwise; CPU only. With vocab_group the entries
        are the largest of all shards.

    batch_invariant: a row's logp, entropy, lse and d_hidden have the same bits whatever other rows
        the call has, in whatever order and number: logits and d_hidden come from products of one
        shape, 256 rows padded with zeros. A check of the machine's products
        runs once per shape, RuntimeError if they do not allow it. d_weight sums over rows, and is
        not covered.

    vocab_group, vocab_start: as in `token_stats`, for the rows of `weight`, which may be none, or a
        DTensor over the group. d_hidden is added up over the ranks; all of them run the backward.

    Shapes, dtypes, the other options and errors as in `token_stats`; hidden and weight share one
    floating dtype, or are cast to autocast's under torch.autocast. A quantised, sharded or empty
    weight is an error that says what to do. NumPy inputs: forward only.
    """
    op = "linear_token_stats"
    meeting = Meeting(op, vocab_group, vocab_start)
    with meeting:
        weight, bias = meeting.local("weight", weight), meeting.local("bias", bias)
        head = HeadOptions(temperature, softcap, logit_scale, bias)
        compute = ComputeOptions(memory_budget, tail_mass, logits_dtype, batch_invariant, backend)
        extras = check_extras(extras)
        hidden, weight = under_autocast(hidden, weight)
        shape = check_head_inputs(op, hidden, weight, targets, mask, head, sharded=meeting.sharded)
        if not is_tensor(hidden):
            check_numpy_backend(op, backend)
            meeting.refuse_numpy()
            return _numpy_stats(hidden, weight, targets, mask, head, compute, extras, shape)
    return _torch_stats(hidden, weight, targets, mask, head, compute, extras, shape, meeting)


def under_autocast(hidden: Any, weight: Any) -> tuple[Any, Any]:
    if not (is_tensor(hidden) and is_tensor(weight)):
        return hidden, weight
    from logitless.ops.torch_op import autocast

    return autocast(hidden, weight)


def check_head_inputs(
    op: str,
    hidden: Any,
    weight: Any,
    targets: Any,
    mask: Any,
    head: HeadOptions,
    *,
    sharded: bool = False,
) -> tuple[int, ...]:
    """Everything a head op asks of its arrays; returns the shape of targets."""
    optional = {"mask": mask, **head.arrays}
    framework(op, optional, hidden=hidden, weight=weight, targets=targets)
    if is_tensor(weight):
        refuse_special_weight(op, weight, sharded=sharded)
    vocab = check_weight(op, hidden, weight)
    return check_tokens(op, "hidden", hidden, targets, mask, head, vocab, sharded=sharded)


def _torch_stats(
    hidden: Any,
    weight: Any,
    targets: Any,
    mask: Any,
    head: HeadOptions,
    compute: ComputeOptions,
    extras: tuple[str, ...],
    shape: tuple[int, ...],
    meeting: Meeting,
) -> TokenStats:
    from logitless.backends.eager import plain_stats
    from logitless.ops.head.inputs import head_call
    from logitless.ops.head.stats_op import linear_stats
    from logitless.ops.rows.outputs import to_stats

    with meeting:
        call = head_call("linear_token_stats", hidden, weight, targets, mask, head, compute, shape)
        meeting.refuse_backend(call.backend)
    if call.backend == "torch":
        if compute.batch_invariant:
            raise ValueError("batch_invariant must be False with backend='torch', got True")
        flat, head_weight, *rows, _ = call.arrays
        dtype = call.logits_dtype
        logits = flat.to(dtype) @ head_weight.to(dtype).t()
        others = tuple(name for name in extras if name not in DROPPED)
        return with_nothing_dropped(to_stats(plain_stats(logits, *rows), shape, others), extras)
    dropped = tuple(name for name in extras if name in DROPPED)
    others = tuple(name for name in extras if name not in DROPPED)
    asked = (
        ("whether there are extras", bool(others)),
        ("whether there are extras of what is dropped", bool(dropped)),
    )
    call = call.sharded(meeting, head, compute, shape, lambda: asked)
    measured = bool(compute.tail_mass) and (any(call.needs) or bool(dropped))
    if not measured:
        tiles = call.tiles(call.plan(replace(compute, tail_mass=0.0), one_pass=False))
        outputs = linear_stats(*call.arrays, bool(others), *tiles)
        return with_nothing_dropped(to_stats(outputs[:-2], shape, others), extras)
    from logitless.ops.head.support_op import SAVED, linear_support_stats

    tiles = call.tiles(call.plan(compute, one_pass=False))
    outputs = linear_support_stats(*call.arrays, bool(others), compute.tail_mass, *tiles)
    *outputs, mass, entropy = outputs[:-SAVED]
    stats = to_stats(tuple(outputs), shape, others)
    both = dict(zip(DROPPED, (mass.reshape(shape), entropy.reshape(shape)), strict=True))
    return stats._replace(extras={name: (both | stats.extras)[name] for name in extras})


def with_nothing_dropped(stats: TokenStats, extras: tuple[str, ...]) -> TokenStats:
    """An exact call drops nothing."""
    zeros = {name: zeros_like(stats.logp) for name in extras if name in DROPPED}
    return stats._replace(extras={name: (zeros | stats.extras)[name] for name in extras})


def _numpy_stats(
    hidden: Any,
    weight: Any,
    targets: Any,
    mask: Any,
    head: HeadOptions,
    compute: ComputeOptions,
    extras: tuple[str, ...],
    shape: tuple[int, ...],
) -> TokenStats:
    import numpy as np

    from logitless.backends.rows import STATE
    from logitless.ops.token_stats import numpy_finish, numpy_rows

    for name, default in (("logits_dtype", None), ("batch_invariant", False), ("tail_mass", 0)):
        value = getattr(compute, name)
        if value is default or (name == "tail_mass" and value == default):
            continue
        raise ValueError(f"{name} must be left at its default for NumPy inputs, got {shown(value)}")
    others = tuple(name for name in extras if name not in DROPPED)
    flat = hidden.reshape(-1, hidden.shape[-1])
    rows = numpy_rows("linear_token_stats", targets, mask, head, flat.dtype)
    tiling = plan(
        len(flat), flat.shape[1], len(weight), flat.dtype, compute.memory_budget, backward=False
    )
    index = None if rows.mask is None else np.flatnonzero(rows.mask)
    flat, rows = flat if index is None else flat[index], rows.gather(index)
    state = np.empty((rows.n, STATE))
    scratch = np.empty(tiling.rows * tiling.columns, flat.dtype)
    for start in range(0, len(weight), tiling.columns):
        w = weight[start : start + tiling.columns]
        for first in range(0, rows.n, tiling.rows):
            chunk = slice(first, min(first + tiling.rows, rows.n))
            part = rows.part(chunk)
            tile = scratch[: part.n * len(w)].reshape(part.n, len(w))
            np.matmul(flat[chunk], w.T, out=tile)
            part.forward(tile, state[chunk], start=start, first=start == 0, extras=bool(others))
    stats = numpy_finish(rows, state, len(weight), flat.dtype, others, shape, index)
    return with_nothing_dropped(stats, extras)
