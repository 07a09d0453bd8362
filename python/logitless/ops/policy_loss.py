"""The policy loss of a call from its per-token log-probs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from logitless import _core
from logitless.inputs.arrays import framework
from logitless.inputs.checks import finite, instance, is_tensor
from logitless.inputs.make_tokens import Array, ids_of, make_tokens, refuse_grad
from logitless.inputs.naming import public
from logitless.inputs.sequences import check_whole
from logitless.inputs.tokens import Bools, Int64s, Tokens
from logitless.loss.evaluate.aggregation import Totals, token_weights
from logitless.loss.evaluate.selection import select, select_in_call, spec_means
from logitless.loss.evaluate.token_loss import Means, TokenLoss, evaluate
from logitless.loss.spec import ClipV, PolicyLossSpec, Reinforce
from logitless.ops.batch_stats import BatchStats, check_ids

_OP = "policy_loss"


class PolicyLossOutput(NamedTuple):
    """A call's share of the batch; sums over micro-batches and ranks are the batch's values."""

    # 0-d, differentiable in logp and entropy
    loss: Any
    # 0-d float32 each, detached
    metrics: dict[str, Any]


@public
def policy_loss(
    logp: Array,  # [N] or [B, T]
    old_logp: Array | None,
    advantages: Array,  # the same, or [B], [B, 1]
    mask: Array,  # bool
    spec: PolicyLossSpec,
    *,
    entropy: Array | None = None,
    ref_logp: Array | None = None,
    rollout_logp: Array | None = None,
    cu_seqlens: Array | None = None,  # int32 [B + 1]
    token_ids: Array | None = None,  # int64
    batch: BatchStats | None = None,
    totals: Totals | None = None,
    grad_scale: float = 1.0,
) -> PolicyLossOutput:
    """The policy loss. In plain code, for spec = presets["ppo"] and a call that is the whole batch:

        ratio = (logp - old_logp).exp()
        loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
        loss = grad_scale * loss[mask].sum() / mask.sum()

    `spec` says what else there is (`PolicyLossSpec`, `presets`). `.loss` is local numerator /
    global normaliser: sum the losses of micro-batches and never divide by their number. The
    normaliser and the selected tokens come from `batch` (`batch_stats`, needs `token_ids`), or from
    `totals` alone where the spec selects nothing over the batch; with neither, this call is the
    whole batch: it selects by its own logp and old_logp with seed 0 and step 0, and `token_ids`
    default to 0, 1, 2, ... . `grad_scale` multiplies the loss, hence its gradients: pass
    `totals.world_size` where DDP or FSDP averages the gradients of ranks.

    First derivatives in logp and entropy; all else is data. float32, bfloat16, float16 and
    float64 (computed in float64 per token; loss in float32, or float64 where logp is); NumPy arrays
    give values only. The ratio is exp of an unclamped difference: a token of ratio 1e30 that the
    surrogate does not clip makes the loss that large, and one that makes it no number at all is an
    error. CUDA tensors go through a copy to the CPU.

    metrics, per valid token unless said: actor/pg_loss and actor/kl_loss (aggregated as the loss,
    without coefficient and grad_scale), actor/pg_clipfrac (ratio clip), actor/pg_clipfrac_lower
    (dual clip), actor/ppo_kl = old_logp - logp, actor/entropy with `entropy`, actor/cov_selected
    (share selected) with a control that selects, actor/cov_mean where the batch means are known
    (not with `totals` alone), and with a correction rollout_corr/rollout_is_mean, .../kl,
    .../k3_kl and the shares of tokens that it cuts and rejects.

    scope="micro" selects within the call as verl does, Clip-Cov's draw coming from torch's global
    CPU generator.

    Raises ValueError for shapes that differ, values that are not finite inside the mask, a token
    whose loss or coefficient is not finite in the dtype of logp (inf - inf, or exp of a log ratio
    of 800: the first such token is named), data that requires grad, missing inputs that the spec
    `needs`, cu_seqlens or token_ids, ids that repeat, both batch and totals, totals with a spec
    that looks at the batch, totals below what this call holds, or a sequence that is not whole
    where the loss is per sequence: `batch` knows every sequence by its `token_ids`. `totals` alone
    are counts: they show a cut only where one call has tokens of all sequences but not all tokens.
    TypeError for dtypes. A metric that float32 cannot hold is infinite, never NaN.
    """
    optional = {
        "old_logp": old_logp,
        "entropy": entropy,
        "ref_logp": ref_logp,
        "rollout_logp": rollout_logp,
        "cu_seqlens": cu_seqlens,
        "token_ids": token_ids,
    }
    # a loss on a device is computed on the CPU, from wherever its arrays are
    framework(_OP, optional, mixed=True, logp=logp, advantages=advantages, mask=mask)
    refuse_grad(
        old_logp=old_logp, advantages=advantages, ref_logp=ref_logp, rollout_logp=rollout_logp
    )
    options: dict[str, Any] = {
        "ref_logp": ref_logp,
        "rollout_logp": rollout_logp,
        "cu_seqlens": cu_seqlens,
        "token_ids": token_ids,
        "batch": batch,
        "totals": totals,
        "grad_scale": grad_scale,
    }
    if is_tensor(logp):
        check_loss_options(spec, batch, totals, grad_scale, token_ids)
        return _torch_loss(logp, entropy, (old_logp, advantages, mask, spec), options)
    return numpy_loss(logp, old_logp, advantages, mask, spec, entropy=entropy, **options)


def numpy_loss(*data: Any, **options: Any) -> PolicyLossOutput:
    """That of NumPy arrays: values only."""
    tokens, result = policy_coefficients(*data, **options)
    # a metric that float32 cannot hold is infinite
    with np.errstate(over="ignore"):
        metrics = {name: np.float32(value) for name, value in result.metrics.items()}
    return PolicyLossOutput(tokens.logp.dtype.type(result.loss), metrics)


def separable(spec: PolicyLossSpec, *, batch: bool) -> bool:
    """Whether a token's coefficients follow from its own logp and what is known before."""
    selects = spec.control is not None and spec.control.selects
    if spec.whole_sequences or (spec.needs_means and not batch):
        return False
    return not selects or (spec.selects and batch)


def policy_coefficients(
    logp: Array,
    old_logp: Array | None,
    advantages: Array,
    mask: Array,
    spec: PolicyLossSpec,
    *,
    entropy: Array | None = None,
    ref_logp: Array | None = None,
    rollout_logp: Array | None = None,
    cu_seqlens: Array | None = None,
    token_ids: Array | None = None,
    batch: BatchStats | None = None,
    totals: Totals | None = None,
    grad_scale: float = 1.0,
) -> tuple[Tokens, TokenLoss]:
    """`policy_loss` as numbers: loss, metrics and the flat coefficients of backward."""
    check_loss_options(spec, batch, totals, grad_scale, token_ids)
    inputs: dict[str, Any] = {
        "old_logp": old_logp,
        "entropy": entropy,
        "ref_logp": ref_logp,
        "rollout_logp": rollout_logp,
    }
    for name in sorted(spec.needs & set(inputs)):
        if inputs[name] is None:
            raise ValueError(f"{name} must be given with {_why(spec, name)}, got None")
    tokens = make_tokens(
        logp,
        advantages,
        mask,
        old_logp=old_logp,
        entropy=entropy,
        ref_logp=ref_logp,
        rollout_logp=rollout_logp,
        cu_seqlens=cu_seqlens,
        token_ids=token_ids,
    )
    if spec.whole_sequences:
        tokens.whole()
    if batch is not None:
        totals = batch.totals
        if spec.per_sequence and batch.sequences is not None:
            check_whole(tokens, ids_of(batch.sequences))
    weights = token_weights(tokens, spec, totals)
    means, selected = _selection(tokens, spec, batch, totals)
    result = evaluate(
        tokens,
        spec,
        weights,
        total_tokens=tokens.number_valid if totals is None else totals.tokens,
        selected=selected,
        means=means,
        grad_scale=float(grad_scale),
    )
    return tokens, result


def check_loss_options(
    spec: PolicyLossSpec,
    batch: BatchStats | None,
    totals: Totals | None,
    grad_scale: float,
    token_ids: Any,
) -> None:
    """What can be wrong before a value is looked at."""
    instance("spec", spec, (PolicyLossSpec,))
    if batch is not None:
        instance("batch", batch, (BatchStats,))
    if totals is not None:
        instance("totals", totals, (Totals,))
    finite("grad_scale", grad_scale)
    if batch is None:
        return
    if totals is not None:
        raise ValueError("totals must be None where batch is given, which carries its own totals")
    for name in ("control", "correction"):
        mine, given = getattr(spec, name), getattr(batch, name)
        same = mine == given
        # Not !=, which torch.compile cannot trace of dataclasses with a number that may vary.
        if not same and not _selects_in_call(mine):
            raise ValueError(f"batch was made for {name}={given}, but the spec has {mine}")
    if token_ids is None and (spec.selects or spec.per_sequence):
        found = "selected tokens" if spec.selects else "cut sequences"
        raise ValueError(f"token_ids must be given with batch: {found} are found by id")


def _selection(
    tokens: Tokens,
    spec: PolicyLossSpec,
    batch: BatchStats | None,
    totals: Totals | None,
) -> tuple[Means | None, Bools | None]:
    """The means where they are known, and the selected tokens of this call where some are."""
    if _selects_in_call(spec.control):
        means = spec_means(tokens, spec)
        return means, select_in_call(tokens, spec, means, _torch_permutation)
    if batch is not None:
        means = Means(
            batch.mean_advantage,
            batch.mean_logp,
            batch.count,
            batch.mean_credit,
            batch.mean_importance,
        )
        return means, _members(tokens, ids_of(batch.selected)) if spec.selects else None
    if totals is not None:
        if spec.selects or spec.needs_means:
            raise ValueError(
                f"{_why(spec, 'batch')} looks at the whole optimizer batch: "
                "pass batch=batch_stats(...), got totals alone"
            )
        return None, None
    if isinstance(spec.control, ClipV):
        raise ValueError(
            f"control={spec.control} selects by entropy_change: "
            "pass batch=batch_stats(..., entropy_change=...), got batch=None"
        )
    means = spec_means(tokens, spec)
    if not spec.selects:
        return means, None
    if tokens.given_ids is not None:
        check_ids(tokens)
    return means, _members(tokens, select(tokens, spec, means, seed=0, step=0))


def _selects_in_call(control: Any) -> bool:
    """Whether tokens are selected within the call, so that no batch knows them."""
    return getattr(control, "selects", False) and getattr(control, "scope", "batch") == "micro"


def _why(spec: PolicyLossSpec, name: str) -> str:
    """The part of the spec that asks for an argument, as name=value."""
    for part in ("control", "correction", "kl", "entropy"):
        only: dict[str, Any] = {part: getattr(spec, part)}
        alone = replace(_NO_RATIO, **only)
        if name in alone.needs or (name == "batch" and (alone.selects or alone.needs_means)):
            return f"spec.{part}={only[part]}"
    return f"spec.ratio={spec.ratio!r}"


_NO_RATIO = PolicyLossSpec(ratio="none", surrogate=Reinforce())


def _torch_permutation(n: int) -> Int64s:
    import torch

    return np.asarray(torch.randperm(n).numpy())


def _members(tokens: Tokens, selected: Int64s) -> Bools:
    """Tokens whose id is in `selected`, which is sorted."""
    out = np.empty(tokens.ids.size, np.bool_)
    _core.tokens.members(tokens.ids, selected, out, tokens.threads)
    return out


def _torch_loss(
    logp: Any, entropy: Any, data: tuple[Any, Any, Any, PolicyLossSpec], options: dict[str, Any]
) -> PolicyLossOutput:
    from logitless.ops.losses.op import loss_arguments, policy_loss_op

    arguments = loss_arguments(*data, **options)
    loss, values, *_ = policy_loss_op(logp, entropy, *arguments)
    names = arguments.metric_names(entropy=entropy is not None)
    return PolicyLossOutput(loss, dict(zip(names, values.unbind(), strict=True)))
