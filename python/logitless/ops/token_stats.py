"""Public op: per-token statistics of given logits."""

from __future__ import annotations

from typing import Any

from logitless.backends import registry
from logitless.backends.registry import check_numpy_backend
from logitless.inputs.arrays import check_dtype, check_tokens, framework, shape_of
from logitless.inputs.checks import flag
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.options import ROW_EXTRAS, LogitTransform, check_extras
from logitless.inputs.sampling_mask import SamplingMask, check_sampling_mask
from logitless.inputs.weights import FLOATS
from logitless.ops.rows.outputs import TokenStats
from logitless.ops.rows.selected import (
    check_selected,
    refuse_selected,
    selected_facts,
    with_selected,
    with_selected_of_ranks,
)
from logitless.ops.sharding.rendezvous import Facts, ShardRendezvous, head_facts, rows_facts, tail


@public
def token_stats(
    logits: Any,  # [N, V] or [B, T, V]
    targets: Any,  # [N] or [B, T] int64
    *,
    mask: Any = None,  # bool or 0 and 1, shape of targets
    sampling_mask: SamplingMask | None = None,
    temperature: Any = 1.0,  # float, or shaped like targets, or [B] or [B, 1] of sequences
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Any = None,  # [V]
    extras: tuple[str, ...] = (),
    selected_ids: Any = None,  # [K] int64
    vocab_group: Any = None,
    vocab_start: int = 0,
    inplace_backward: bool = False,
    backend: str = "auto",
) -> TokenStats:
    """Log-probability and entropy of each token in one pass over its logits.

    Equivalent plain code::

        z = logit_scale * (logits + bias)
        if softcap: z = softcap * tanh(z / softcap)
        z = z / temperature[..., None]
        lse = z.logsumexp(-1)
        log_p = z - lse[..., None]
        logp = log_p.gather(-1, targets[..., None])[..., 0]
        entropy = -(log_p.exp() * log_p).sum(-1)

    Inputs are torch tensors or NumPy arrays (forward only) in float32, bfloat16, float16 or
    float64; results are float32 (float64 for float64), in nats, shaped like `targets`. A logit of
    -inf is an impossible token, and so is one whose z is below what results hold. Rows where
    `mask` is False are never read and give 0, whatever they hold. logp, entropy and lse have first
    derivatives with respect to logits and bias.

    `extras` adds to `.extras`, not differentiable: "varentropy" = sum p (log p + H)^2; "sum_p2" =
    sum p^2 and "log_sum_p2", its log; "mean_logit" = sum p z (TRL's
    mean_logits is another, the mean of z over the vocabulary); "argmax" (int64); "entropy_change" =
    -(S_a - C) with S_a = p_a (log p_a + H), C = sum p^2 (log p + H): the first-order change of the
    token's entropy per unit of a policy-gradient step of weight 1 on its own logits ("The Entropy
    Mechanism of Reinforcement Learning for Reasoning Language Models", 2025).

    selected_ids: one set of ids for all rows; `.selected` has their log-probs, [*targets.shape, K],
        with first derivatives, from lse: at |z| = 10^4 they have its rounding of 5e-4. With
        vocab_group they are ids of the whole vocabulary, the same on every rank.

    sampling_mask: of each row the tokens that it could be sampled as, under top_k, top_p or min_p;
        none of a row: all. Everything above is then of the softmax renormalised over them, and
        other tokens get no gradient: z[others] = -inf, after the whole chain. Without it the
        log-prob of a rollout that was truncated is off by the log of the mass that the set holds.
        `extras` of the whole softmax beside it: "kept_mass", that mass; "full_logp";
        "full_entropy" (docs/sampling.md). Logits outside of a set are not looked at. Not with
        inplace_backward, nor in a graph of torch.compile. With vocab_group every rank passes all
        ids.

    vocab_group, vocab_start: `logits` (and bias) are the columns from vocab_start on; the others
        are with the other ranks of this torch.distributed group, which pass the same rows; targets
        are ids of the whole vocabulary, and results are those of all of it (docs/sharded.md).
        `vocab_shard` makes both once, to be passed as vocab_group.

    inplace_backward: write the gradient into the memory of `logits`, whose values are then gone;
        of a leaf, `.grad` is that memory. As with torch's own in-place ops RuntimeError follows
        where another node of the graph has saved them (tanh, a square, a second call) and is yet to
        need them. Entries that share memory (expand), a parameter, and a leaf whose `.grad` lies
        there already are a ValueError. The backward runs once. With backend="torch", in compiled
        graphs and under hooks for saved tensors (checkpointing, offloading) the gradient has memory
        of its own.
        Memory that is mapped for reading alone, as by np.memmap(..., mode="r"), raises ValueError
        in the backward. A tensor over the bytes of an immutable object is like any other: torch
        warned when torch.frombuffer made it.

    backend: "auto" is the compiled core on the CPU; on a GPU its CUDA kernels or else Triton's, and
    plain torch for float64. "cpu", "cuda", "triton" or "torch" name one. Nothing waits for a GPU,
    and calls may be captured in a CUDA graph after a first one outside of it.

    Raises ValueError or TypeError naming the argument for bad shapes, dtypes and options, and
    ValueError naming the first row that holds a NaN, a +inf, no finite logit, or (where the mask
    is True) a target outside [0, V), or whose lse overflows. logit_scale / temperature, and with a
    softcap logit_scale / softcap and softcap / temperature, must be between 2^-120 and 2^100
    (2^-960 and 2^960 for float64). On a GPU such a row, and one whose temperature is bad, gives
    NaN, and RuntimeError in a later call or backward; LOGITLESS_CHECK=1 raises in the call itself.
    NotImplementedError says why where no kernels serve.
    """
    op = "token_stats"

    def call_kind() -> tuple[Any, ...]:
        return (
            tail(logits),
            temperature,
            softcap,
            logit_scale,
            bias,
            extras,
            selected_ids is None,
            inplace_backward,
            backend,
            sampling_mask,
        )

    ranks = ShardRendezvous(op, vocab_group, vocab_start, call_kind)
    with ranks:
        head = LogitTransform(temperature, softcap, logit_scale, ranks.local("bias", bias))
        extras = check_extras(extras, known=ROW_EXTRAS, sets=sampling_mask is not None)
        mask = as_mask(mask)
        flag("inplace_backward", inplace_backward)
        optional = {"mask": mask, "selected_ids": selected_ids, **head.arrays}
        kind = framework(op, optional, logits=logits, targets=targets)
        check_dtype(op, "logits", logits, *FLOATS)
        vocab = (0, *shape_of(logits))[-1]
        shape = check_tokens(
            op, "logits", logits, targets, mask, head, vocab, sharded=ranks.sharded
        )
        head = head.on_rows(shape)
        check_selected(op, selected_ids, vocab, sharded=ranks.sharded)
        if sampling_mask is not None:
            check_sampling_mask(sampling_mask, shape)
            refuse_selected(sampling_mask, selected_ids)
            if inplace_backward:
                raise NotImplementedError(
                    "token_stats: inplace_backward with a sampling_mask is not built, got True"
                )
        if kind == "numpy":
            check_numpy_backend(op, backend)
            ranks.refuse_numpy()
            stats = _numpy_stats(logits, targets, mask, head, extras, shape, sampling_mask)
    if kind != "numpy":
        stats = _torch_stats(
            logits, targets, mask, head, extras, shape, inplace_backward, backend, ranks,
            sampling_mask, selected_ids,
        )  # fmt: skip
    if selected_ids is None or stats.selected is not None:
        return stats
    raw = logits.index_select(-1, selected_ids) if kind == "torch" else logits[..., selected_ids]
    return with_selected(stats, raw, selected_ids, mask, head)


def _torch_stats(
    logits: Any,
    targets: Any,
    mask: Any,
    head: LogitTransform,
    extras: tuple[str, ...],
    shape: tuple[int, ...],
    inplace: bool,
    backend: str,
    ranks: ShardRendezvous,
    sampling_mask: SamplingMask | None,
    selected_ids: Any,
) -> TokenStats:
    import torch

    from logitless.ops.rows.arguments import row_arguments
    from logitless.ops.rows.masked import eager_masked_stats, mask_facts, masked_token_stats
    from logitless.ops.rows.op import OP, row_stats
    from logitless.ops.rows.outputs import to_stats
    from logitless.ops.rows.overwrite import check_overwritable
    from logitless.ops.torch_op import backend_of

    with ranks:
        chosen = backend_of(backend, logits)
        ranks.require(chosen)
        if sampling_mask is not None:
            registry.get(chosen).require(OP, sampling_mask=True)
        # The core walks [B, T, V] with any row strides: logits[:, :-1] costs no copy.
        logits = logits if logits.stride(-1) == 1 else logits.contiguous()
        if inplace:
            check_overwritable(OP, logits, head.bias)
        wide = logits.dtype == torch.float64
        rows = row_arguments(OP, head, targets, mask, wide, chosen)

    def same() -> Facts:
        facts = rows_facts(logits, rows.targets, rows.mask, shape)
        found = (*head_facts(head), *facts, ("whether there are extras", bool(extras)))
        found = (*found, *selected_facts(selected_ids))
        return found if sampling_mask is None else (*found, *mask_facts(sampling_mask))

    shard = ranks.shard(logits.shape[-1], same)
    eager = registry.get(chosen).statistics
    if eager is not None:
        flat = logits.reshape(-1, logits.shape[-1])
        if sampling_mask is not None:
            return eager_masked_stats(eager, flat, rows, sampling_mask, shape, extras)
        return to_stats(eager(flat, *rows[:-1]), shape, extras)
    if sampling_mask is not None:
        return masked_token_stats(logits, rows, sampling_mask, shape, extras, shard)
    stats = row_stats(logits, rows, bool(extras), inplace, shard)
    found = to_stats(stats.outputs._asdict(), shape, extras)
    if selected_ids is None or not shard.group:
        return found
    from logitless.ops.sharding.few import padded

    def columns(ids: Any) -> Any:
        return padded(logits, -1).index_select(-1, ids)

    width = logits.shape[-1]
    return with_selected_of_ranks(OP, found, columns, selected_ids, mask, head, width, shard)


def _numpy_stats(
    logits: Any,
    targets: Any,
    mask: Any,
    head: LogitTransform,
    extras: tuple[str, ...],
    shape: tuple[int, ...],
    sampling_mask: SamplingMask | None,
) -> TokenStats:
    import numpy as np

    from logitless.backends.row_kernels.rows import STATE
    from logitless.ops.rows.numpy_rows import numpy_masked, numpy_rows, numpy_stats

    logits = logits if logits.strides[-1] == logits.itemsize else np.ascontiguousarray(logits)
    rows = numpy_rows("token_stats", targets, mask, head, logits.dtype)
    if sampling_mask is not None:
        flat = logits.reshape(-1, logits.shape[-1])

        def whole(others: Any, of_rows: tuple[str, ...]) -> TokenStats:
            return _numpy_stats(logits, targets, others.reshape(shape), head, of_rows, shape, None)

        found = sampling_mask.sets(rows.targets, rows.mask, flat.shape[-1])
        values = flat[found.rows, found.ids]
        return numpy_masked(rows, found, values, flat.shape[-1], shape, extras, whole)
    state = np.empty((targets.size, STATE))
    rows.forward(logits, state, extras=bool(extras))
    return numpy_stats(rows, state, logits.shape[-1], logits.dtype, extras, shape)
