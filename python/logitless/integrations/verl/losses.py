"""Policy losses under `loss_mode: logitless/<preset>`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.integrations.verl import hooks
from logitless.integrations.verl.context import current

PREFIX = "logitless/"
# Inputs of a loss that no engine of verl's has.
ABSENT = frozenset({"entropy_change", "old_entropy"})
# What a preset says itself, in verl's configuration of the actor and of its policy loss.
DESCRIBING = (
    "clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "tau_pos", "tau_neg",
)  # fmt: skip
DESCRIBING_LOSS = (
    "clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef", "dro_beta",
)  # fmt: skip
# Metrics of ours that are no means over tokens: verl reports the loss itself.
_LOSSES = ("actor/pg_loss", "actor/kl_loss")
_specs: dict[str, ll.PolicyLossSpec] = {}
_log = logging.getLogger(__name__)


def register(name: str, spec: ll.PolicyLossSpec) -> None:
    """`loss_mode: logitless/<name>` is this loss from now on, in this process.

    Presets have their names already; a module of yours that `model.external_lib` or
    VERL_USE_EXTERNAL_MODULES names can add others, in every worker.
    """
    missing = spec.needs & ABSENT
    if missing:
        raise ValueError(f"{name}: the loss needs {', '.join(sorted(missing))}, which verl has not")
    _specs[name] = spec
    hooks.when_imported(hooks.LOSSES, lambda module: _register(module, name))


def register_presets() -> None:
    for name, spec in ll.presets.items():
        if not spec.needs & ABSENT:
            register(name, spec)


def _register(module: ModuleType, name: str) -> None:
    decorator = hooks.find(module, hooks.REGISTER)
    hooks.check(f"{module.__name__}.{hooks.REGISTER}", decorator, ("name",))
    theirs = hooks.find(module, "compute_policy_loss_vanilla")
    hooks.check(f"a policy loss of {module.__name__}", theirs, hooks.LOSS_PARAMETERS)
    decorator(f"{PREFIX}{name}")(_policy_loss(name))


def is_ours(config: Any) -> bool:
    """Whether an actor's configuration asks for a loss of this library."""
    loss = getattr(config, "policy_loss", None)
    return loss is not None and str(loss.get("loss_mode", "")).startswith(PREFIX)


def spec_of(config: Any, width: int) -> ll.PolicyLossSpec:
    """The loss that an actor's configuration asks for, which is one of ours.

    width: of padded responses, verl's generation limit where its configuration has none.
    """
    mode = str(config.policy_loss.loss_mode)
    name = mode[len(PREFIX) :]
    if name not in _specs:
        raise ValueError(f"loss_mode={mode!r} is not known: {', '.join(_specs)} follow {PREFIX}")
    spec = _specs[name]
    _refuse_others(spec, mode, config, DESCRIBING)
    _refuse_others(spec, mode, config.policy_loss, DESCRIBING_LOSS)
    if config.loss_agg_mode not in ("token-mean", spec.aggregation):
        raise ValueError(
            f"loss_mode={mode!r} is aggregated as {spec.aggregation!r}, and loss_agg_mode="
            f"{config.loss_agg_mode!r} says another: leave it at 'token-mean', or register a spec"
        )
    if spec.aggregation == "seq-mean-token-sum-norm" and spec.max_length is None:
        spec = replace(spec, max_length=config.loss_scale_factor or width)
    return spec


def _refuse_others(spec: ll.PolicyLossSpec, mode: str, config: Any, names: tuple[str, ...]) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        value = getattr(config, name)
        if value != defaults[name]:
            raise ValueError(
                f"loss_mode={mode!r} says what the loss is, and {name}={value!r} says another: "
                f"leave it at {defaults[name]!r}, or give register(name, replace(spec, ...)) of "
                "logitless.integrations.verl a spec of yours"
            )


def _policy_loss(name: str) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    def policy_loss(
        old_log_prob: Tensor,  # [B, T]
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """This library's loss; its metrics are means over the tokens of the micro-batch."""
        if not is_ours(config):
            raise ValueError(f"{PREFIX}{name} was called without a configuration that names it")
        spec = spec_of(config, response_mask.shape[1])
        mask = response_mask.bool()
        out, tokens = _output(
            spec, old_log_prob, log_prob, advantages, mask, config.global_batch_info,
            rollout_is_weights,
        )  # fmt: skip
        return out.loss, _means(out.metrics, tokens, int(mask.sum()))

    return policy_loss


def _output(
    spec: ll.PolicyLossSpec,
    old_logp: Tensor,
    logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    info: dict[str, Any],
    weights: Tensor | None,
) -> tuple[Any, int]:
    """The loss of a call, and the tokens of the batch that it is a share of."""
    micro = current()
    totals = totals_of(info, mask)
    tokens = int(mask.sum()) if totals is None else totals.tokens
    if micro is None:
        missing = spec.needs - {"old_logp"}
        if missing:
            raise ValueError(
                f"the loss needs {', '.join(sorted(missing))}, which verl hands to no loss: the "
                "engines fsdp and fsdp2 of this library do"
            )
        spec, more = _of_the_call(spec), {"totals": totals}
    elif micro.made is not None:
        return micro.made, tokens if micro.batch is None else micro.batch.totals.tokens
    else:
        more = arguments(spec, micro, totals)
        tokens = tokens if micro.batch is None else micro.batch.totals.tokens
        more["entropy"] = micro.entropy if "entropy" in spec.needs else None
    options: dict[str, Any] = {
        "weights": weights,
        "grad_scale": float(info.get("dp_size") or 1),
        **more,
    }
    return ll.policy_loss(logp, old_logp, advantages, mask, spec, **options), tokens


def arguments(spec: ll.PolicyLossSpec, micro: Any, totals: ll.Totals | None) -> dict[str, Any]:
    """Of policy_loss and linear_policy_loss, beside what verl hands over."""
    known: dict[str, Any] = {"totals": totals} if micro.batch is None else {"batch": micro.batch}
    rows: dict[str, Any] = {
        name: getattr(micro, name) for name in ("ref_logp", "rollout_logp") if name in spec.needs
    }
    absent = [name for name, x in rows.items() if x is None]
    if absent:
        raise ValueError(f"the loss needs {', '.join(absent)}, which this batch of verl's has not")
    return {**known, **rows, "token_ids": micro.token_ids}


def totals_of(info: dict[str, Any], mask: Tensor) -> ll.Totals | None:
    """verl's own counts over the optimizer batch; None where it has none, and the call is it."""
    tokens, sequences = info.get("batch_num_tokens"), info.get("global_batch_size")
    if tokens is None and sequences is None:
        return None
    tokens = mask.sum() if tokens is None else tokens
    sequences = mask.any(dim=1).sum() if sequences is None else sequences
    return ll.Totals(int(tokens), int(sequences), int(info.get("dp_size") or 1))


_said: set[str] = set()


def _of_the_call(spec: ll.PolicyLossSpec) -> ll.PolicyLossSpec:
    """Where nobody knows the optimizer batch, each call is looked at alone, as verl does."""
    looking: list[Any] = [x for x in spec.surveying if x.scope == "batch"]
    looking += [spec.control] if spec.selects else []
    known = {name: getattr(spec, name) for name in ("surrogate", "control", "entropy")}
    parts = {name: x for name, x in known.items() if x in looking}
    for part in parts.values():
        name = type(part).__name__
        if name not in _said:
            _said.add(name)
            _log.warning("%s looks at each micro-batch alone: this engine tells no other", name)
    changes: Any = {k: replace(x, scope="micro") for k, x in parts.items()}
    return replace(spec, **changes) if changes else spec


def _means(metrics: dict[str, Tensor], of_batch: int, of_call: int) -> dict[str, float]:
    """verl averages over micro-batches and ranks what ours adds up."""
    names = [name for name in metrics if name not in _LOSSES]
    if not names or not of_call:
        return dict.fromkeys(names, 0.0)
    values = torch.stack([metrics[name] for name in names]) * (of_batch / of_call)
    return dict(zip(names, values.tolist(), strict=True))
