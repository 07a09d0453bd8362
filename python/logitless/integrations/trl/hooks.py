"""What of TRL is replaced or called, and the signatures under which it is known."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SUPPORTED = ("1.15", "1.16")
UTILS = "trl.trainer.utils"
HEAD = "add_fused_lm_head"
TRAINERS = tuple(f"trl.trainer.{name}_trainer" for name in ("grpo", "rloo", "sft", "dpo", "kto"))
HEAD_PARAMETERS = ("model", "temperature", "cast_lm_head_to_fp32", "outputs")
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
# What an instance of it has, beside what transformers' Trainer has.
GRPO_ATTRIBUTES = (
    "_buffered_inputs", "_metrics", "_step", "aux_loss_enabled", "num_iterations",
    "router_aux_loss_coef",
)  # fmt: skip


def trl_version() -> str:
    try:
        return version("trl")
    except PackageNotFoundError as error:
        raise ImportError("TRL is not installed: pip install 'logitless[trl]'") from error


def check_version() -> None:
    found = trl_version()
    if ".".join(found.split(".")[:2]) not in SUPPORTED:
        raise ImportError(f"logitless.integrations.trl knows trl {_known()}, and found trl {found}")


def unknown(looked_for: str, found: str) -> ImportError:
    return ImportError(
        f"logitless.integrations.trl looked for {looked_for} in trl {trl_version()} and found "
        f"{found}: it knows trl {_known()}"
    )


def _known() -> str:
    return " and ".join(SUPPORTED)


def find(module: str, name: str) -> Any:
    """An attribute of a module of TRL's, or one of a class there."""
    trl_version()
    try:
        return functools.reduce(getattr, name.split("."), _imported(module))
    except (AttributeError, ModuleNotFoundError) as error:
        raise unknown(f"{module}.{name}", f"none ({error})") from error


def importable(module: str) -> bool:
    """Not where it lacks a package other than TRL: then its trainer cannot be made either."""
    trl_version()
    try:
        _imported(module)
    except ModuleNotFoundError as error:
        return (error.name or "trl").split(".")[0] == "trl"
    return True


def _imported(module: str) -> Any:
    with warnings.catch_warnings():
        # TRL warns whoever imports its experimental trainers; here nobody may want one.
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def function(module: str, name: str, parameters: tuple[str, ...]) -> Callable[..., Any]:
    """One of these parameters."""
    found: Callable[..., Any] = find(module, name)
    _check(f"{module}.{name}", found, parameters)
    return found


def head_function() -> Callable[..., None]:
    """The function that all of its trainers give their model a head with."""
    found = function(UTILS, HEAD, HEAD_PARAMETERS)
    for module in TRAINERS:
        find(module, HEAD)
    return found


def output_class() -> Any:
    """What a model with a head returns."""
    kind = find(UTILS, OUTPUT)
    fields = tuple(getattr(kind, "__dataclass_fields__", ()))
    if fields != OUTPUT_FIELDS:
        raise unknown(f"{UTILS}.{OUTPUT}({', '.join(OUTPUT_FIELDS)})", f"({', '.join(fields)})")
    return kind


def grpo_trainer() -> Any:
    """TRL's GRPO trainer, whose methods a subclass overrides and calls."""
    check_version()
    module = "trl.trainer.grpo_trainer"
    kind = find(module, "GRPOTrainer")
    for name, first in GRPO_METHODS.items():
        method = getattr(kind, name, None)
        if method is None:
            raise unknown(f"{module}.GRPOTrainer.{name}", "none")
        _check(f"{module}.GRPOTrainer.{name}", method, first, more=len(first) > 3)
    return kind


def check_grpo_attributes(trainer: Any) -> None:
    """Of a trainer that TRL has made."""
    for name in GRPO_ATTRIBUTES:
        if not hasattr(trainer, name):
            raise unknown(f"GRPOTrainer.{name}", "none")


def model_inputs(trainer: Any) -> tuple[str, ...]:
    """Names of what a micro-batch may hold for the model beside tokens: images and the like."""
    name = "_get_per_token_logps_and_entropies"
    parameters = tuple(inspect.signature(getattr(trainer, name)).parameters)
    return parameters[len(GRPO_METHODS[name]) :]


def _check(
    name: str, found: Callable[..., Any], known: tuple[str, ...], *, more: bool = False
) -> None:
    """`more`: further parameters may follow."""
    parameters = tuple(inspect.signature(found).parameters)
    if (parameters[: len(known)] if more else parameters) != known:
        raise unknown(f"{name}({', '.join(known)})", f"{name}({', '.join(parameters)})")
