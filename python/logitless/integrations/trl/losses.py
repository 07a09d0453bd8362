"""The loss that the arguments of TRL's GRPO trainer describe, as a spec and a normaliser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import logitless as ll

# By what a micro-batch's sum is divided, beside the number of micro-batches of an optimizer step:
# its rows, of which those without a valid token count; its valid tokens; or those of the whole
# generation batch, as a share.
Normaliser = Literal["rows", "tokens", "items"]


class Kind(NamedTuple):
    """A loss_type of TRL's."""

    aggregation: str
    normaliser: Normaliser
    surrogate: Callable[[Any], Any]


class ArgsLoss(NamedTuple):
    spec: ll.PolicyLossSpec
    normaliser: Normaliser
    # a token mean of each micro-batch, whatever the normaliser of the rest
    entropy_coefficient: float


def scaled(
    loss: ArgsLoss,
    mask: Tensor,  # [B, T]
    items: Tensor,  # valid tokens of an optimizer step, on average over ranks
    micro_batches: int,
) -> tuple[ll.PolicyLossSpec, float]:
    """(spec, grad_scale) of a call that is its own batch, where TRL divides otherwise."""
    counts = (mask.sum(), mask.any(dim=1).sum(), items)
    tokens, sequences, items_per_step = torch.stack([x.double() for x in counts]).tolist()
    share = {
        "rows": sequences / len(mask) / micro_batches,
        "tokens": 1 / micro_batches,
        "items": tokens / items_per_step,
    }[loss.normaliser]
    spec = loss.spec
    if spec.entropy is None or not tokens:
        return spec, share
    # TRL's bonus is the mean of its micro-batch's tokens, with equal weights as in these losses.
    weight = {
        "token-mean": 1 / tokens,
        "seq-mean-token-sum": 1 / sequences,
        "seq-mean-token-sum-norm": 1 / (sequences * (spec.max_length or 1)),
    }[spec.aggregation]
    coefficient = loss.entropy_coefficient / (tokens * micro_batches * weight * share)
    return replace(spec, entropy=ll.EntropyBonus(coefficient)), share


def _clip(args: Any) -> ll.Clip:
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    if args.delta is not None and not args.delta >= 1 + high:
        raise ValueError(
            f"delta={args.delta} lies below 1 + epsilon_high = {1 + high}, where it would also "
            "bound ratios of positive advantages: no spec says that"
        )
    return ll.Clip(args.epsilon, high, dual=args.delta)


def _cispo(args: Any) -> ll.Cispo:
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    if high < 1:
        raise ValueError(
            f"epsilon_high={high} with loss_type='cispo' is the bound of the ratio itself, and "
            "cuts every ratio below 1: set it to 1 or more"
        )
    return ll.Cispo(1.0, high - 1)


def _sapo(args: Any) -> ll.Sapo:
    return ll.Sapo(args.sapo_temperature_pos, args.sapo_temperature_neg)


def _vespo(args: Any) -> ll.Vespo:
    return ll.Vespo(
        args.vespo_k_pos, args.vespo_lambda_pos, args.vespo_k_neg, args.vespo_lambda_neg
    )


KINDS: dict[str, Kind] = {
    "grpo": Kind("seq-mean-token-mean", "rows", _clip),
    "bnpo": Kind("token-mean", "tokens", _clip),
    "dr_grpo": Kind("seq-mean-token-sum-norm", "rows", _clip),
    "dapo": Kind("token-mean", "items", _clip),
    "luspo": Kind("seq-mean-token-sum", "rows", _clip),
    "cispo": Kind("token-mean", "items", _cispo),
    "sapo": Kind("seq-mean-token-mean", "rows", _sapo),
    "vespo": Kind("token-mean", "items", _vespo),
}
# What `loss=` says in their place.
DESCRIBING = (
    "loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level",
    "off_policy_mask_threshold", "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy",
    "sapo_temperature_pos", "sapo_temperature_neg", "vespo_k_pos", "vespo_lambda_pos",
    "vespo_k_neg", "vespo_lambda_neg",
)  # fmt: skip


def loss_of_args(args: Any) -> ArgsLoss:
    """ValueError naming the argument where no spec says what it asks for."""
    kind = KINDS.get(args.loss_type)
    if kind is None:
        raise ValueError(f"loss_type={args.loss_type!r} is not known: {', '.join(KINDS)} are")
    if args.top_entropy_quantile < 1:
        raise ValueError(
            f"top_entropy_quantile={args.top_entropy_quantile} is a quantile of each micro-batch, "
            "which no spec has: pass loss=replace(spec, control=TopEntropy(fraction)), which "
            "selects over the optimizer batch, or use TRL's trainer after install()"
        )
    if args.use_adaptive_entropy:
        raise ValueError(
            "use_adaptive_entropy=True is not built: set the spec's entropy term by a controller "
            "(StepController, LogController), or use TRL's trainer after install()"
        )
    if args.entropy_coef and kind.aggregation == "seq-mean-token-mean":
        raise ValueError(
            f"entropy_coef={args.entropy_coef} with loss_type={args.loss_type!r}: TRL's bonus is a "
            "mean over tokens, that loss one over sequences: pass loss=replace(spec, "
            "entropy=EntropyBonus(coefficient)), aggregated like the loss"
        )
    spec = ll.PolicyLossSpec(
        ratio=_ratio(args),
        surrogate=kind.surrogate(args),
        control=_control(args),
        kl=_kl(args),
        entropy=ll.EntropyBonus(args.entropy_coef) if args.entropy_coef else None,
        aggregation=kind.aggregation,  # type: ignore[arg-type]
        max_length=args.max_completion_length if args.loss_type == "dr_grpo" else None,
    )
    return ArgsLoss(spec, kind.normaliser, args.entropy_coef)


def given_loss(loss: Any, args: Any) -> ll.PolicyLossSpec:
    """A preset or spec, with the KL term that `beta` asks for and the generation limit of `args`
    where it has none."""
    spec = ll.presets[loss] if isinstance(loss, str) else loss
    if not isinstance(spec, ll.PolicyLossSpec):
        raise TypeError(
            f"loss must be a PolicyLossSpec, a name of presets or None, got {type(loss).__name__}"
        )
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    for name in DESCRIBING:
        value = getattr(args, name)
        if value != defaults[name]:
            raise ValueError(
                f"loss={loss!r} says what the loss is, and {name}={value!r} says another: leave it "
                f"at {defaults[name]!r}"
            )
    if spec.kl is None:
        spec = replace(spec, kl=_kl(args))
    if spec.aggregation == "seq-mean-token-sum-norm" and spec.max_length is None:
        spec = replace(spec, max_length=args.max_completion_length)
    if "ref_logp" in spec.needs and not args.beta:
        raise ValueError(
            "the loss compares with a reference policy, which TRL has only where beta is not 0; "
            "with a KL term in the spec its number is not used"
        )
    if "rollout_logp" in spec.needs and not args.use_vllm:
        raise ValueError(
            "the loss needs log-probs of the rollout, which TRL has only with use_vllm=True"
        )
    if "old_entropy" in spec.needs:
        raise ValueError("the loss needs entropies of the old policy, which TRL does not keep")
    return spec


def _ratio(args: Any) -> Any:
    if args.loss_type == "vespo":
        return "sequence_sum"
    return args.importance_sampling_level


def _control(args: Any) -> ll.OffPolicyMask | None:
    if args.off_policy_mask_threshold is None:
        return None
    against: Any = "rollout" if args.use_vllm else "old"
    return ll.OffPolicyMask(args.off_policy_mask_threshold, against=against)


def _kl(args: Any) -> ll.KL | None:
    if not args.beta:
        return None
    if args.use_bias_correction_kl and args.importance_sampling_level != "token":
        raise ValueError(
            "use_bias_correction_kl=True with importance_sampling_level="
            f"{args.importance_sampling_level!r} weighs the KL term by the sequence's ratio: no "
            "spec says that"
        )
    if args.use_bias_correction_kl and args.loss_type == "vespo" and args.use_vllm:
        raise ValueError(
            "use_bias_correction_kl=True with loss_type='vespo' and use_vllm=True: the ratio of "
            "that loss is against the rollout, the KL term's against the old policy"
        )
    return ll.KL("k3", args.beta, weight="ratio" if args.use_bias_correction_kl else "none")
