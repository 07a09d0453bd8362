"""Public op: the policy loss straight from hidden x weight, without its logits."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from logitless.backends.registry import check_numpy_backend
from logitless.inputs.adapter import adapter_kind, check_adapters
from logitless.inputs.checks import is_tensor
from logitless.inputs.gradients import refuse_grad
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.options import ComputeOptions, LogitTransform, check_extras
from logitless.loss.evaluate.coefficients import check_loss_options, separable
from logitless.loss.evaluate.inputs import loss_data
from logitless.loss.evaluate.numpy_loss import numpy_loss
from logitless.ops.head.numpy_statistics import numpy_statistics
from logitless.ops.head.parse import check_head_arrays, check_masked_head, under_autocast
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
    vocab_group: Any = None,
    vocab_start: int = 0,
    memory_budget: int | str | None = None,
    tail_mass: float = 0.0,
    tail_entries: int = 64,
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

    `extras` of `linear_token_stats` come at no product of their own, in `.extras`.

    sampling_mask: log-probs and entropies are of the softmax renormalised over the tokens that each
    row could be sampled as, as those of the rollout's engine are: old_logp, ref_logp and
    rollout_logp have to be so too (docs/sampling.md).

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
            memory_budget,
            tail_mass,
            tail_entries,
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
        compute = ComputeOptions(
            memory_budget, tail_mass, logits_dtype, batch_invariant, backend, tail_entries
        )
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
                "old_entropy": old_entropy,
            },
            anywhere={
                "advantages": advantages, "weights": weights, "cu_seqlens": cu_seqlens,
                "token_ids": token_ids,
            },
        )  # fmt: skip
        head = head.on_rows(shape)
        adapters = check_adapters(_OP, adapter, hidden, weight, ranks.local)
        if sampling_mask is not None or type(weight_grad) is not str or weight_grad != "dense":
            check_masked_head(sampling_mask, weight, shape, compute, weight_grad)
        if not is_tensor(hidden):
            ranks.refuse_numpy()
            check_numpy_backend(_OP, backend)
            stats = numpy_statistics(
                _OP, hidden, weight, targets, mask, head, compute, shape, extras, sampling_mask,
                adapters,
            )  # fmt: skip
            loss, values = numpy_loss(stats.logp, stats.entropy, loss_data(*data))
            return LinearPolicyLossOutput(loss, values, stats.logp, stats.entropy, stats.extras)
        from logitless.ops.head.inputs import head_inputs
        from logitless.ops.losses.op import loss_inputs

        inputs = head_inputs(
            _OP, hidden, weight, targets, mask, head, compute, ranks, sampling_mask is not None,
            adapters,
        )  # fmt: skip
        arguments = loss_inputs(*data)
    if sampling_mask is not None:
        inputs = inputs.sharded(
            ranks, head, shape, lambda: _masked_facts(arguments, spec, extras, sampling_mask)
        )
        return _run_masked(
            inputs, arguments, shape, extras, sampling_mask, weight_rows=weight_grad == "rows"
        )
    inputs = inputs.sharded(ranks, head, shape, lambda: _facts(arguments, spec, extras))
    return _run(inputs, arguments, shape, separable(spec, batch=batch is not None), extras)


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
    value, metrics = torch_loss(stats.logp, stats.entropy, loss)
    return LinearPolicyLossOutput(
        value, metrics, stats.logp.detach(), stats.entropy.detach(), stats.extras
    )


def _run(
    inputs: HeadInputs,
    loss: LossInputs,
    shape: tuple[int, ...],
    split: bool,
    extras: tuple[str, ...],
) -> LinearPolicyLossOutput:
    """Forward and backward at once where that is the plan, else one after the other."""
    from logitless.ops.head.policy_op import (
        head_policy_extras,
        head_policy_loss,
        metric_names,
    )
    from logitless.ops.head.statistics import statistics
    from logitless.ops.losses.op import torch_loss

    tail, plan = inputs.compute.tail, None
    if any(inputs.needs) and inputs.backend.statistics is None:
        plan = inputs.plan(one_pass=True, split=split)
        # Of any length: the op itself asks for the plan.
        chunk_rows = 0 if isinstance(plan, str) else plan.chunk_rows
        if chunk_rows or tail.mass or isinstance(plan, str):
            given = (
                inputs.operand, inputs.weight, inputs.rows, loss, tail, chunk_rows,
                list(inputs.needs), inputs.tiling(plan), inputs.shard,
            )  # fmt: skip
            if extras or inputs.up is not None:
                out = head_policy_extras(*given, ",".join(extras), inputs.up)
                asked = _of_rows(extras, out.extras, out.logp) if extras else {}
            else:
                out, asked = head_policy_loss(*given), {}
            metrics = named(metric_names(loss, tail), out.metrics)
            return LinearPolicyLossOutput(out.loss, metrics, out.logp, out.entropy, asked)
    stats = statistics(inputs, shape, extras, plan=plan)
    value, metrics = torch_loss(stats.logp, stats.entropy, loss)
    return LinearPolicyLossOutput(
        value, metrics, stats.logp.detach(), stats.entropy.detach(), stats.extras
    )


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
