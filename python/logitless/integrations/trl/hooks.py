"""What of TRL is replaced or called, and the signatures under which it is known."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SUPPORTED = "1.15 and 1.16"
UTILS = "trl.trainer.utils"
HEAD = "add_fused_lm_head"
TRAINERS = tuple(f"trl.trainer.{name}_trainer" for name in ("grpo", "rloo", "sft", "dpo", "kto"))
HEAD_PARAMETERS = ("model", "temperature", "cast_lm_head_to_fp32", "outputs")
DISTILLATION = "trl.trainer.distillation_trainer"
DIVERGENCE = "_chunked_divergence_loss"
DIVERGENCE_PARAMETERS = (
    "student_hidden_states", "teacher_hidden_states", "student_lm_head_weight",
    "teacher_lm_head_weight", "completion_mask", "beta", "num_items_in_batch",
    "student_lm_head_bias", "teacher_lm_head_bias", "student_logit_scale", "teacher_logit_scale",
    "student_final_logit_softcapping", "teacher_final_logit_softcapping", "temperature",
)  # fmt: skip
OUTPUT = "FusedCausalLMOutput"
OUTPUT_FIELDS = (
    "loss", "log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask",
    "aux_loss",
)  # fmt: skip
# Methods of TRL's GRPO trainer, and the first of their parameters.
GRPO_METHODS = {
    "_compute_loss": ("self", "model", "inputs"),
    "_prepare_inputs": ("self", "generation_batch"),
    "_get_per_token_logps_and_entropies": (
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size",
        "compute_entropy", "compute_aux_loss",
    ),
}  # fmt: skip


def trl_version() -> str:
    try:
        return version("trl")
    except PackageNotFoundError as error:
        raise ImportError("TRL is not installed: pip install 'logitless[trl]'") from error


def unknown(looked_for: str, found: str) -> ImportError:
    return ImportError(
        f"logitless.integrations.trl looked for {looked_for} in trl {trl_version()} and found "
        f"{found}: it knows trl {SUPPORTED}"
    )


def find(module: str, name: str) -> Any:
    """An attribute of a module of TRL's."""
    trl_version()
    try:
        return getattr(importlib.import_module(module), name)
    except (AttributeError, ModuleNotFoundError) as error:
        raise unknown(f"{module}.{name}", f"none ({error})") from error


def head_function() -> Callable[..., None]:
    """The function that all of its trainers give their model a head with."""
    function: Callable[..., None] = find(UTILS, HEAD)
    _check(f"{UTILS}.{HEAD}", function, HEAD_PARAMETERS)
    for module in TRAINERS:
        find(module, HEAD)
    return function


def divergence_function() -> Callable[..., Any]:
    """The loss of its distillation trainer."""
    function: Callable[..., Any] = find(DISTILLATION, DIVERGENCE)
    _check(f"{DISTILLATION}.{DIVERGENCE}", function, DIVERGENCE_PARAMETERS)
    return function


def output_class() -> Any:
    """What a model with a head returns."""
    kind = find(UTILS, OUTPUT)
    fields = tuple(getattr(kind, "__dataclass_fields__", ()))
    if fields != OUTPUT_FIELDS:
        raise unknown(f"{UTILS}.{OUTPUT}({', '.join(OUTPUT_FIELDS)})", f"({', '.join(fields)})")
    return kind


def grpo_trainer() -> Any:
    """TRL's GRPO trainer, whose methods a subclass overrides and calls."""
    module = "trl.trainer.grpo_trainer"
    kind = find(module, "GRPOTrainer")
    for name, first in GRPO_METHODS.items():
        method = getattr(kind, name, None)
        if method is None:
            raise unknown(f"{module}.GRPOTrainer.{name}", "none")
        _check(f"{module}.GRPOTrainer.{name}", method, first, more=len(first) > 3)
    return kind


def model_inputs(trainer: Any) -> tuple[str, ...]:
    """Names of what a micro-batch may hold for the model beside tokens: images and the like."""
    name = "_get_per_token_logps_and_entropies"
    parameters = tuple(inspect.signature(getattr(trainer, name)).parameters)
    return parameters[len(GRPO_METHODS[name]) :]


def _check(
    name: str, function: Callable[..., Any], known: tuple[str, ...], *, more: bool = False
) -> None:
    """`more`: further parameters may follow."""
    parameters = tuple(inspect.signature(function).parameters)
    if (parameters[: len(known)] if more else parameters) != known:
        raise unknown(f"{name}({', '.join(known)})", f"{name}({', '.join(parameters)})")
