"""Public op: per-token statistics of hidden x weight, without its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitless.backends.registry import check_numpy_backend
from logitless.inputs.adapter import adapter_kind, check_adapters
from logitless.inputs.arrays import shape_of
from logitless.inputs.checks import is_tensor
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.options import ComputeOptions, LogitTransform, check_extras
from logitless.ops.head.numpy_statistics import numpy_selected, numpy_statistics
from logitless.ops.head.parse import check_head_arrays, check_masked_head, under_autocast
from logitless.ops.rows.outputs import TokenStats
from logitless.ops.rows.selected import check_selected, refuse_selected, selected_facts
from logitless.ops.sampling.likeliest import check_entropy_top_p, statistics_with, top_p_facts
from logitless.ops.sharding.rendezvous import ShardRendezvous, tail

if TYPE_CHECKING:
    from logitless.inputs.sampling_mask import SamplingMask


@public
def linear_token_stats(
    hidden: Any,  # [N, H] or [B, T, H]
    weight: Any,  # [V, H]
    targets: Any,  # [N] or [B, T] int64
    *,
    mask: Any = None,  # bool or 0 and 1, shape of targets
    sampling_mask: SamplingMask | None = None,
    temperature: Any = 1.0,  # float, or shaped like targets, or [B] or [B, 1] of sequences
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Any = None,  # [V]
    adapter: Any = None,  # (A [r, H], B [V, r], scale), or a list of such
    extras: tuple[str, ...] = (),
    entropy_top_p: float | None = None,
    selected_ids: Any = None,  # [K] int64
    vocab_group: Any = None,
    vocab_start: int = 0,
    memory_budget: int | str | None = None,
    tail_mass: float = 0.0,
    tail_entries: int = 512,
    active_capacity: int | None = None,
    logits_dtype: Any = None,
    batch_invariant: bool = False,
    weight_grad: str = "dense",
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
    logits_dtype: dtype in which tiles of logits are realised. None is that of `hidden`: bfloat16
        tiles cost errors of about 0.02-0.05 in logp at |z| = 20, as in every other implementation;
        torch.float32 avoids that and pays for float32 products. On a CPU without 16-bit products
        None is float32, which is the faster there by far; `hidden.dtype` asks for tiles in 16 bits.

    tail_mass: rows whose tail_entries largest entries and target hold all but so much of their
        probability get their gradient from those alone, not from dense products; values stay
        exact. extras "dropped_mass" and "dropped_entropy" say per row what that loses, and bound
        the error: docs/support.md. 0 is exact; at least 1e-5 otherwise; on the CPU, and on a GPU
        with the compiled CUDA core. With vocab_group the entries are the largest of all shards.
    tail_entries: a multiple of 64 up to 1024. A row keeps as few of its entries, in steps of 64, as
        tail_mass allows; more room serves broader rows and costs time and 12 KB per 512 entries of
        every row.

    active_capacity: the most rows that the mask may hold; an int >= 1. On a device forward and
        backward then compute so many rows whatever the mask and the gradients are, and nothing in
        them waits: a CUDA graph can hold both, which without it takes all rows for active. A mask
        of more rows is flagged as a bad row is, its error naming both numbers, and those computed
        are NaN in results and gradients. The CPU counts them, raises ValueError, and changes
        nothing else. Not with tail_mass, sampling_mask or entropy_top_p, and on a device not with
        gradients of float16: docs/head.md.

    batch_invariant: a row's logp, entropy, lse and d_hidden have the same bits whatever other rows
        the call has, in whatever order and number: logits and d_hidden come from products of one
        shape, 256 rows padded with zeros. A check of the machine's products
        runs once per shape, RuntimeError if they do not allow it. d_weight sums over rows, and is
        not covered.

    sampling_mask: as in `token_stats`. A row that has a set costs products with its tokens' rows of
        weight alone, or where sets are so large that it costs less a dense product; which, follows
        from sizes alone.
    weight_grad: "rows" gives d_weight as a sparse tensor of the rows of weight that are in a set,
        like torch.nn.Embedding(sparse=True): writing zeros to all others is most of the time. It
        needs a sampling_mask with a set for every row of the mask.

    adapter: a low-rank adapter of the head, (A, B, scale), or a list of several: the logits are
        those of the weight W + scale * B A, from one product a tile; no [V, H] beside weight is
        ever made. A and B have gradients, and one of weight is made only if it requires grad. They
        may be of another floating dtype than hidden (float32 beside bfloat16, as peft keeps
        them); hidden A^T is rounded to that of hidden. B is cut as weight is under vocab_group.

    vocab_group, vocab_start: as in `token_stats`, for the rows of `weight`, which may be none, or a
        DTensor over the group. d_hidden is added up over the ranks; all of them run the backward.

    entropy_top_p: `.entropy` is that of each row's likeliest tokens, the fewest whose share of the
        mass reaches it (as top_p of `linear_sample`), renormalised; log-probs and extras stay those
        of all. Differentiable as ever, the tokens being data. It costs another product forward,
        which names the tokens, and products with their rows of weight, forward and backward, or
        where they are many dense ones; a flat row, whose 256 largest do not reach it, has all its
        logits made once more. docs/sampling.md has an example.

    selected_ids: as in `token_stats`, from a product of K columns. The gradient of `.selected` in
        weight is one of all [V, H], as any gather's.

    Shapes, dtypes, the other options and errors as in `token_stats`; hidden and weight share one
    floating dtype, or are cast to autocast's under torch.autocast. A quantised, sharded or empty
    weight is an error that says what to do. NumPy inputs: forward only.
    """
    op = "linear_token_stats"

    def call_kind() -> tuple[Any, ...]:
        return (
            tail(hidden),
            tail(weight, 2),
            temperature,
            softcap,
            logit_scale,
            bias,
            extras,
            entropy_top_p,
            selected_ids is None,
            memory_budget,
            tail_mass,
            tail_entries,
            active_capacity,
            str(logits_dtype),
            batch_invariant,
            backend,
            sampling_mask,
            adapter_kind(adapter),
        )

    ranks = ShardRendezvous(op, vocab_group, vocab_start, call_kind)
    with ranks:
        weight, bias = ranks.local("weight", weight), ranks.local("bias", bias)
        head = LogitTransform(temperature, softcap, logit_scale, bias)
        compute = ComputeOptions(
            memory_budget, tail_mass, logits_dtype, batch_invariant, backend, tail_entries,
            active_capacity,
        )  # fmt: skip
        extras = check_extras(extras, sets=sampling_mask is not None)
        mask = as_mask(mask)
        hidden, weight = under_autocast(hidden, weight)
        shape = check_head_arrays(
            op, hidden, weight, targets, mask, head, sharded=ranks.sharded,
            of_rows={"selected_ids": selected_ids},
        )  # fmt: skip
        top_p = check_entropy_top_p(op, entropy_top_p, hidden, sampling_mask)
        check_selected(op, selected_ids, shape_of(weight)[0], sharded=ranks.sharded)
        head = head.on_rows(shape)
        adapters = check_adapters(op, adapter, hidden, weight, ranks.local)
        if sampling_mask is not None or type(weight_grad) is not str or weight_grad != "dense":
            check_masked_head(op, sampling_mask, weight, shape, compute, weight_grad)
            refuse_selected(sampling_mask, selected_ids)
        if not is_tensor(hidden):
            check_numpy_backend(op, backend)
            ranks.refuse_numpy()
            stats = numpy_statistics(
                op, hidden, weight, targets, mask, head, compute, shape, extras, sampling_mask,
                adapters,
            )  # fmt: skip
            return numpy_selected(stats, hidden, weight, selected_ids, mask, head, adapters)
        from logitless.ops.head.inputs import head_inputs
        from logitless.ops.head.statistics import extras_facts, selected

        inputs = head_inputs(
            op, hidden, weight, targets, mask, head, compute, ranks, sampling_mask is not None,
            adapters, top_p is not None, weight_grad == "rows",
        )  # fmt: skip
    if sampling_mask is not None:
        from logitless.ops.head.masked import masked_statistics
        from logitless.ops.rows.masked import mask_facts

        inputs = inputs.sharded(
            ranks, head, shape, lambda: (*extras_facts(extras), *mask_facts(sampling_mask))
        )
        rows = weight_grad == "rows"
        return masked_statistics(inputs, sampling_mask, shape, extras, weight_rows=rows)
    inputs = inputs.sharded(
        ranks,
        head,
        shape,
        lambda: (*extras_facts(extras), *selected_facts(selected_ids), *top_p_facts(top_p)),
    )
    stats = statistics_with(top_p, inputs, shape, extras)
    return selected(op, stats, inputs, hidden, weight, selected_ids, mask, head)
