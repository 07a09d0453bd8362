"""Public op: the policy loss straight from hidden x weight, without its logits."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from logitless.inputs.arrays import framework
from logitless.inputs.checks import is_tensor
from logitless.inputs.make_tokens import refuse_grad
from logitless.inputs.naming import public
from logitless.inputs.options import ComputeOptions, HeadOptions
from logitless.ops.linear_token_stats import check_head_inputs, linear_token_stats, under_autocast
from logitless.ops.policy_loss import check_loss_options, policy_loss
from logitless.ops.sharding.vocab_parallel import Facts, Meeting, fingerprint

if TYPE_CHECKING:
    from logitless.loss.evaluate.aggregation import Totals
    from logitless.loss.spec import PolicyLossSpec
    from logitless.ops.batch_stats import BatchStats
    from logitless.ops.losses.op import LossArguments


_OP = "linear_policy_loss"


class LinearPolicyLossOutput(NamedTuple):
    """A call's share of the batch, and what it scored on the way."""

    loss: Any  # 0-d, differentiable in hidden, weight and bias
    metrics: dict[str, Any]  # 0-d float32 each, detached
    logp: Any  # shaped like targets, detached
    entropy: Any


@public
def linear_policy_loss(
    hidden: Any,  # [N, H] or [B, T, H]
    weight: Any,  # [V, H]
    targets: Any,  # [N] or [B, T] int64
    old_logp: Any,  # shaped like targets, and so the next two
    advantages: Any,  # or per sequence: [B] or [B, 1]
    mask: Any,  # bool
    spec: PolicyLossSpec,
    *,
    ref_logp: Any = None,
    rollout_logp: Any = None,
    cu_seqlens: Any = None,
    token_ids: Any = None,
    batch: BatchStats | None = None,
    totals: Totals | None = None,
    grad_scale: float = 1.0,
    temperature: Any = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Any = None,
    vocab_group: Any = None,
    vocab_start: int = 0,
    memory_budget: int | str | None = None,
    tail_mass: float = 0.0,
    logits_dtype: Any = None,
    batch_invariant: bool = False,
    backend: str = "auto",
) -> LinearPolicyLossOutput:
    """Log-prob, entropy and policy loss of each token from the head's input, in one call.

    Equivalent plain code::

        logp, entropy, *_ = linear_token_stats(hidden, weight, targets, mask=mask, ...)
        loss, metrics = policy_loss(logp, old_logp, advantages, mask, spec, entropy=entropy, ...)

    Tokens that the loss gives no gradient (masked, clipped, of advantage zero, not selected) enter
    no backward product. `.loss` has first derivatives in hidden, weight and bias only, by one
    backward per forward: any other argument that requires grad is a ValueError. Under no_grad
    nothing is kept.

    With vocab_group the loss is the same number on every rank of it: count it once.

    With tail_mass > 0 the metrics actor/support_* say how many rows were served from their largest
    entries, and bound the error of that: docs/support.md.

    Options, shapes and errors as in `linear_token_stats` and `policy_loss`.
    """
    refuse_grad(
        old_logp=old_logp,
        advantages=advantages,
        ref_logp=ref_logp,
        rollout_logp=rollout_logp,
        temperature=temperature,
    )
    meeting = Meeting(_OP, vocab_group, vocab_start)
    loss_options = {
        "ref_logp": ref_logp,
        "rollout_logp": rollout_logp,
        "cu_seqlens": cu_seqlens,
        "token_ids": token_ids,
        "batch": batch,
        "totals": totals,
        "grad_scale": grad_scale,
    }
    data = (old_logp, advantages, mask, spec)
    with meeting:
        weight, bias = meeting.local("weight", weight), meeting.local("bias", bias)
        head = HeadOptions(temperature, softcap, logit_scale, bias)
        compute = ComputeOptions(memory_budget, tail_mass, logits_dtype, batch_invariant, backend)
        check_loss_options(spec, batch, totals, grad_scale, token_ids)
        rows = {"old_logp": old_logp, "ref_logp": ref_logp, "rollout_logp": rollout_logp}
        framework(_OP, rows, hidden=hidden, mask=mask)
        lists = {"cu_seqlens": cu_seqlens, "token_ids": token_ids}
        framework(_OP, lists, mixed=True, hidden=hidden, advantages=advantages)
        hidden, weight = under_autocast(hidden, weight)
        if not is_tensor(hidden):
            meeting.refuse_numpy()
    if is_tensor(hidden):
        out = _one_pass(hidden, weight, targets, head, compute, data, loss_options, meeting)
        if out is not None:
            return out
    stats = linear_token_stats(
        hidden,
        weight,
        targets,
        mask=mask,
        temperature=temperature,
        softcap=softcap,
        logit_scale=logit_scale,
        bias=bias,
        vocab_group=vocab_group,
        vocab_start=meeting.start,
        memory_budget=memory_budget,
        tail_mass=tail_mass,
        logits_dtype=logits_dtype,
        batch_invariant=batch_invariant,
        backend=backend,
    )
    loss, metrics = policy_loss(stats.logp, *data, entropy=stats.entropy, **loss_options)
    detached = (x.detach() if hasattr(x, "detach") else x for x in (stats.logp, stats.entropy))
    return LinearPolicyLossOutput(loss, metrics, *detached)


def _one_pass(
    hidden: Any,
    weight: Any,
    targets: Any,
    head: HeadOptions,
    compute: ComputeOptions,
    data: tuple[Any, Any, Any, PolicyLossSpec],
    loss_options: dict[str, Any],
    meeting: Meeting,
) -> LinearPolicyLossOutput | None:
    """Forward and backward at once, where that is the plan; None: one after the other."""
    from logitless.ops.head.inputs import head_call
    from logitless.ops.head.policy_op import one_pass, separable
    from logitless.ops.losses.op import loss_arguments

    *_, mask, spec = data
    with meeting:
        sharded = meeting.sharded
        shape = check_head_inputs(_OP, hidden, weight, targets, mask, head, sharded=sharded)
        call = head_call(_OP, hidden, weight, targets, mask, head, compute, shape)
        meeting.refuse_backend(call.backend)
        arguments = loss_arguments(*data, **loss_options)
    call = call.sharded(meeting, head, compute, shape, lambda: _facts(arguments, spec))
    if not any(call.needs) or call.backend == "torch":
        return None
    if compute.tail_mass:
        return _from_support(call, compute, arguments)
    split = separable(spec, batch=loss_options["batch"] is not None)
    tiling = call.plan(compute, one_pass=True, split=split)
    # Of any length: the op itself asks for the plan.
    chunk_rows = 0 if isinstance(tiling, str) else tiling.chunk_rows
    if not (chunk_rows or isinstance(tiling, str)):
        return None
    loss, values, logp, entropy, *_ = one_pass(
        *call.arrays, *arguments, chunk_rows, list(call.needs), *call.tiles(tiling)
    )
    metrics = dict(zip(arguments.metric_names(entropy=True), values.unbind(), strict=True))
    return LinearPolicyLossOutput(loss, metrics, logp, entropy)


def _from_support(call: Any, compute: ComputeOptions, arguments: Any) -> LinearPolicyLossOutput:
    from logitless.ops.head.support_policy_loss import support_metric_names, support_policy_loss

    tiling = call.tiles(call.plan(compute, one_pass=True))
    loss, values, logp, entropy, *_ = support_policy_loss(
        *call.arrays, *arguments, compute.tail_mass, list(call.needs), *tiling
    )
    metrics = dict(zip(support_metric_names(arguments), values.unbind(), strict=True))
    return LinearPolicyLossOutput(loss, metrics, logp, entropy)


def _facts(arguments: LossArguments, spec: PolicyLossSpec) -> Facts:
    """What of the loss must be the same on every rank of vocab_group: else their coefficients, and
    so the parts of one gradient, would be of different losses."""
    import torch

    tensors = [x for x in arguments if is_tensor(x)]
    plain = [x for x in arguments if not is_tensor(x)]
    if torch.compiler.is_compiling():
        return ()
    facts = [
        ("the loss (a checksum)", zlib.crc32(str(plain).encode())),
        ("the data of the loss (a checksum)", fingerprint(*tensors)),
    ]
    if getattr(spec.control, "scope", "batch") == "micro":
        state = fingerprint(torch.get_rng_state())
        facts.append(("torch's CPU generator, from which scope='micro' may draw,", state))
    return tuple(facts)
