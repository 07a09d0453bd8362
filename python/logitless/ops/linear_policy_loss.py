"""Public op: the policy loss straight from hidden x weight, without its logits."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from logitless.backends.registry import check_numpy_backend
from logitless.inputs.adapter import adapter_kind, check_adapters
from logitless.inputs.arrays import shape_of
from logitless.inputs.checks import is_tensor
from logitless.inputs.gradients import refuse_grad
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.options import ComputeOptions, LogitTransform, check_extras
from logitless.loss.evaluate.coefficients import check_loss_options, separable
from logitless.loss.evaluate.inputs import loss_data
from logitless.loss.evaluate.numpy_loss import numpy_loss
from logitless.ops.head.numpy_statistics import numpy_selected, numpy_statistics
from logitless.ops.head.parse import check_head_arrays, check_masked_head, under_autocast
from logitless.ops.rows.outputs import TokenStats
from logitless.ops.rows.selected import check_selected, refuse_selected, selected_facts
from logitless.ops.sampling.likeliest import check_entropy_top_p, statistics_with, top_p_facts
from logitless.ops.sharding.rendezvous import Facts, ShardRendezvous, fingerprint, tail

if TYPE_CHECKING:
    from logitless.inputs.sampling_mask import SamplingMask
    from logitless.loss.evaluate.inputs import BatchStats, Totals
    from logitless.loss.spec import PolicyLossSpec
    from logitless.ops.head.inputs import HeadInputs
    from logitless.ops.losses.op import LossInputs


_OP = "linear_policy_loss"


class LinearPolicyLossOutput(NamedTuple):
    """A call's share of the batch, and what it scored on the way."""

    loss: Any  # 0-d, differentiable in hidden, weight and bias
    metrics: dict[str, Any]  # 0-d float32 each, detached
    logp: Any  # shaped like targets, detached
    entropy: Any
    extras: dict[str, Any]  # the requested extras by name, shaped like targets
    selected: Any = None  # [*targets.shape, K] log-probs of `selected_ids`; None without any


@public
def linear_policy_loss(
    hidden: Any,  # [N, H] or [B, T, H]
    weight: Any,  # [V, H]
    targets: Any,  # [N] or [B, T] int64
    old_logp: Any,  # shaped like targets, and so the next two; None: on-policy
    advantages: Any,  # or per sequence: [B] or [B, 1]
    mask: Any,  # bool, or integers 0 and 1
    spec: PolicyLossSpec,
    *,
    ref_logp: Any = None,
    rollout_logp: Any = None,
    weights: Any = None,  # per token or sequence, as advantages
    old_entropy: Any = None,  # shaped like targets
    cu_seqlens: Any = None,
    token_ids: Any = None,
    batch: BatchStats | None = None,
    totals: Totals | None = None,
    grad_scale: float = 1.0,
    metrics: Literal["shares", "means"] = "shares",
    sampling_mask: SamplingMask | None = None,
    temperature: Any = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Any = None,
    adapter: Any = None,
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
) -> LinearPolicyLossOutput:
    """Log-prob, entropy and policy loss of each token from the head's input, in one call.

    Equivalent plain code::

        logp, entropy, *_ = linear_token_stats(hidden, weight, targets, mask=mask, ...)
        loss, metrics = policy_loss(logp, old_logp, advantages, mask, spec, entropy=entropy, ...)

    Tokens that the loss gives no gradient (masked, clipped, of advantage or weight zero, not
    selected) enter no backward product. Without old_logp (None) the call is on-policy, as in
    `policy_loss`: its own logp is the old one. `.loss` has first derivatives in hidden, weight and
    bias only, by one backward per forward: any other argument that requires grad is a ValueError.
    Under no_grad nothing is kept.

    With vocab_group the loss is the same number on every rank of it: count it once.

    With tail_mass > 0 the metrics actor/support_* say how many rows were served from their largest
    entries, at most tail_entries of each, and bound the error of that: docs/support.md.

    `extras` of `linear_token_stats` come at no product of their own, in `.extras`; `.selected`, the
    log-probs of `selected_ids`, from one of K columns. They are data like all but `.loss`, whose
    gradient is made with the loss: for a gradient of theirs ask `linear_token_stats`.

    active_capacity: as in `linear_token_stats`: the most tokens that the mask may hold. Those that
        the loss gives no gradient enter the backward's products then.

    sampling_mask: log-probs and entropies are of the softmax renormalised over the tokens that each
    row could be sampled as, as those of the rollout's engine are: old_logp, ref_logp and
    rollout_logp have to be so too (docs/sampling.md).

    entropy_top_p: as in `linear_token_stats`: the entropies of the loss, and of `.entropy` and
        metrics, are those of the likeliest tokens, as SIREN wants them (top_p 0.8). The loss is
        then made after its statistics, not in one pass with them.

    adapter: as in `linear_token_stats`; `.loss` has derivatives in its A and B too.

    Options, shapes and errors as in `linear_token_stats` and `policy_loss`.
    """
    refuse_grad(
        old_logp=old_logp,
        advantages=advantages,
        ref_logp=ref_logp,
        rollout_logp=rollout_logp,
        weights=weights,
        old_entropy=old_entropy,
        temperature=temperature,
    )

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

    ranks = ShardRendezvous(_OP, vocab_group, vocab_start, call_kind)
    with ranks:
        weight, bias = ranks.local("weight", weight), ranks.local("bias", bias)
        head = LogitTransform(temperature, softcap, logit_scale, bias)
        head = head.on_packed(cu_seqlens, targets)
        compute = ComputeOptions(
            memory_budget, tail_mass, logits_dtype, batch_invariant, backend, tail_entries,
            active_capacity,
        )  # fmt: skip
        extras = check_extras(extras, sets=sampling_mask is not None)
        mask = as_mask(mask)
        data = (
            old_logp, advantages, mask, ref_logp, rollout_logp, cu_seqlens, token_ids, spec, batch,
            totals, grad_scale, weights, metrics, old_entropy,
        )  # fmt: skip
        check_loss_options(spec, batch, totals, grad_scale, token_ids, metrics)
        hidden, weight = under_autocast(hidden, weight)
        shape = check_head_arrays(
            _OP, hidden, weight, targets, mask, head, sharded=ranks.sharded,
            of_rows={
                "old_logp": old_logp, "ref_logp": ref_logp, "rollout_logp": rollout_logp,
                "old_entropy": old_entropy, "selected_ids": selected_ids,
            },
            anywhere={
                "advantages": advantages, "weights": weights, "cu_seqlens": cu_seqlens,
                "token_ids": token_ids,
            },
        )  # fmt: skip
        top_p = check_entropy_top_p(_OP, entropy_top_p, hidden, sampling_mask)
        check_selected(_OP, selected_ids, shape_of(weight)[0], sharded=ranks.sharded)
        head = head.on_rows(shape)
        adapters = check_adapters(_OP, adapter, hidden, weight, ranks.local)
        if sampling_mask is not None or type(weight_grad) is not str or weight_grad != "dense":
            check_masked_head(_OP, sampling_mask, weight, shape, compute, weight_grad)
            refuse_selected(sampling_mask, selected_ids)
        if not is_tensor(hidden):
            ranks.refuse_numpy()
            check_numpy_backend(_OP, backend)
            stats = numpy_statistics(
                _OP, hidden, weight, targets, mask, head, compute, shape, extras, sampling_mask,
                adapters,
            )  # fmt: skip
            stats = numpy_selected(stats, hidden, weight, selected_ids, mask, head, adapters)
            return _output(*numpy_loss(stats.logp, stats.entropy, loss_data(*data)), stats)
        from logitless.ops.head.inputs import head_inputs
        from logitless.ops.losses.op import loss_inputs

        inputs = head_inputs(
            _OP, hidden, weight, targets, mask, head, compute, ranks, sampling_mask is not None,
            adapters, top_p is not None, weight_grad == "rows",
        )  # fmt: skip
        arguments = loss_inputs(*data)
    if sampling_mask is not None:
        inputs = inputs.sharded(
            ranks, head, shape, lambda: _masked_facts(arguments, spec, extras, sampling_mask)
        )
        rows = weight_grad == "rows"
        return _run_masked(inputs, arguments, shape, extras, sampling_mask, weight_rows=rows)
    inputs = inputs.sharded(
        ranks, head, shape,
        lambda: (
            *_facts(arguments, spec, extras), *selected_facts(selected_ids), *top_p_facts(top_p)
        ),
    )  # fmt: skip
    split, asks = separable(spec, batch=batch is not None), selected_ids is not None
    loss, values, stats = _run(inputs, arguments, shape, split, extras, top_p, lse=asks)
    if asks:
        import torch

        from logitless.ops.head.statistics import selected

        with torch.no_grad():
            stats = selected(_OP, stats, inputs, hidden, weight, selected_ids, mask, head)
    return _output(loss, values, stats)


def _output(loss: Any, metrics: dict[str, Any], stats: TokenStats) -> LinearPolicyLossOutput:
    return LinearPolicyLossOutput(
        loss, metrics, stats.logp, stats.entropy, stats.extras, stats.selected
    )


def _run_masked(
    inputs: HeadInputs,
    loss: LossInputs,
    shape: tuple[int, ...],
    extras: tuple[str, ...],
    sampling_mask: SamplingMask,
    *,
    weight_rows: bool,
) -> LinearPolicyLossOutput:
    """The statistics, then the loss of them: a set's few logits are kept for the backward, which so
    costs no more products than one made at once."""
    from logitless.ops.head.masked import masked_statistics
    from logitless.ops.losses.op import torch_loss

    stats = masked_statistics(inputs, sampling_mask, shape, extras, weight_rows=weight_rows)
    return _output(*torch_loss(stats.logp, stats.entropy, loss), _detached(stats))


def _detached(stats: TokenStats) -> TokenStats:
    logp, entropy, lse = (x.detach() for x in stats[:3])
    return TokenStats(logp, entropy, lse, stats.extras)


def _run(
    inputs: HeadInputs,
    loss: LossInputs,
    shape: tuple[int, ...],
    split: bool,
    extras: tuple[str, ...],
    top_p: float | None,
    *,
    lse: bool,
) -> tuple[Any, dict[str, Any], TokenStats]:
    """Loss, metrics, and statistics without a gradient, with `lse` where it is asked for. Forward
    and backward at once where that is the plan, else one after the other."""
    from logitless.ops.head.policy_op import (
        head_policy_extras,
        head_policy_loss,
        metric_names,
    )
    from logitless.ops.losses.op import torch_loss

    tail, plan = inputs.compute.tail, None
    if any(inputs.needs) and inputs.backend.statistics is None and top_p is None:
        plan = inputs.plan(one_pass=True, split=split)
        # Of any length: the op itself asks for the plan.
        chunk_rows = 0 if isinstance(plan, str) else plan.chunk_rows
        if chunk_rows or tail.mass or isinstance(plan, str):
            given = (
                inputs.operand, inputs.weight, inputs.rows, loss, tail, chunk_rows,
                list(inputs.needs), inputs.tiling(plan), inputs.shard,
            )  # fmt: skip
            names = (*extras, "lse") if lse else extras
            if names or inputs.up is not None:
                out = head_policy_extras(*given, ",".join(names), inputs.up)
                asked = _of_rows(names, out.extras, out.logp) if names else {}
            else:
                out, asked = head_policy_loss(*given), {}
            metrics = named(metric_names(loss, tail), out.metrics)
            of_row = asked.pop("lse", None)
            return out.loss, metrics, TokenStats(out.logp, out.entropy, of_row, asked)
    stats = statistics_with(top_p, inputs, shape, extras, plan)
    return *torch_loss(stats.logp, stats.entropy, loss), _detached(stats)


def _of_rows(extras: tuple[str, ...], table: Any, logp: Any) -> dict[str, Any]:
    """The rows of a table as `linear_token_stats` gives them."""
    import torch

    return {
        name: row.to(torch.int64 if name == "argmax" else logp.dtype).view(logp.shape)
        for name, row in zip(extras, table, strict=True)
    }


def named(names: tuple[str, ...], values: Any) -> dict[str, Any]:
    return dict(zip(names, values.unbind(), strict=True))


def _masked_facts(
    arguments: LossInputs,
    spec: PolicyLossSpec,
    extras: tuple[str, ...],
    sampling_mask: SamplingMask,
) -> Facts:
    from logitless.ops.rows.masked import mask_facts

    return (*_facts(arguments, spec, extras), *mask_facts(sampling_mask))


def _facts(arguments: LossInputs, spec: PolicyLossSpec, extras: tuple[str, ...]) -> Facts:
    """What of the loss must be the same on every rank of vocab_group: else their coefficients, and
    so the parts of one gradient, would be of different losses."""
    import torch

    from logitless.ops.head.statistics import extras_facts

    tensors = [x for x in arguments if is_tensor(x)]
    plain = [x for x in arguments if not is_tensor(x)]
    if torch.compiler.is_compiling():
        return ()
    facts = [
        ("the loss (a checksum)", zlib.crc32(str(plain).encode())),
        ("the data of the loss (a checksum)", fingerprint(*tensors)),
        *extras_facts(extras),
    ]
    if getattr(spec.control, "scope", "batch") == "micro":
        state = fingerprint(torch.get_rng_state())
        facts.append(("torch's CPU generator, from which scope='micro' may draw,", state))
    return tuple(facts)
