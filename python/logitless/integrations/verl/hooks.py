"""What of verl is replaced or called, and the parameters under which it is known."""

from __future__ import annotations

import importlib.abc
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

SUPPORTED = "0.9"
LOSSES = "verl.trainer.ppo.core_algos"
REGISTER = "register_policy_loss"
LOSS_PARAMETERS = (
    "old_log_prob", "log_prob", "advantages", "response_mask", "loss_agg_mode", "config",
    "rollout_is_weights",
)  # fmt: skip
PATCHES = "verl.models.transformers.monkey_patch"
PATCH = "patch_forward_with_backends"
PATCH_PARAMETERS = ("model", "use_fused_kernels", "fused_kernels_backend")
OUTPUTS = "verl.models.transformers.dense_common"
OUTPUT = "CausalLMOutputForPPO"
ENGINES = "verl.workers.engine.fsdp.transformer_impl"
ENGINE = "FSDPEngineWithLMHead"
REGISTRY = "EngineRegistry"
# Methods of the engine that ours overrides.
ENGINE_METHODS = {
    "_build_fsdp_module": ("self", "module"),
    "prepare_model_inputs": ("self", "micro_batch"),
    "prepare_model_outputs": (
        "self", "output", "output_args", "micro_batch", "logits_processor_func",
    ),
    "forward_step": ("self", "micro_batch", "loss_function", "forward_only"),
    "forward_backward_batch": ("self", "data", "loss_function", "forward_only"),
}  # fmt: skip

# Under Megatron: the method that turns fused kernels on, and the modules that call the fused head.
MEGATRON_ENGINES = "verl.workers.engine.megatron.transformer_impl"
MEGATRON_ENGINE = "MegatronEngine"
MEGATRON_METHOD = "_maybe_enable_fused_kernels"
FUSED_FORWARDS = (
    "verl.models.mcore.model_forward_fused", "verl.models.mcore.model_forward_1f1b_overlap",
)  # fmt: skip
# the GPTModel in wrappers, or None
PATCHED_MODEL = "_get_patching_model"
CROSS_ENTROPY = "linear_cross_entropy"
CROSS_ENTROPY_PARAMETERS = (
    "ctx", "hidden", "weight", "labels", "temperature", "reduction", "dist_process_group",
)  # fmt: skip


def verl_version() -> str:
    try:
        return version("verl")
    except PackageNotFoundError as error:
        raise ImportError("verl is not installed: docs/verl.md says how") from error


def check_version() -> None:
    found = verl_version()
    if found.split(".")[:2] != SUPPORTED.split("."):
        raise unknown(f"verl {SUPPORTED}", f"verl {found}")


def unknown(looked_for: str, found: str) -> ImportError:
    return ImportError(
        f"logitless.integrations.verl looked for {looked_for} in verl {verl_version()} and found "
        f"{found}: it knows verl {SUPPORTED}"
    )


def find(module: ModuleType, name: str) -> Any:
    """An attribute of a module of verl's."""
    if not hasattr(module, name):
        raise unknown(f"{module.__name__}.{name}", "none")
    return getattr(module, name)


def check(name: str, function: Callable[..., Any], known: tuple[str, ...]) -> None:
    parameters = tuple(inspect.signature(function).parameters)
    if parameters != known:
        raise unknown(f"{name}({', '.join(known)})", f"{name}({', '.join(parameters)})")


def when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    """`action` of the module as soon as it has run: at once where it has.

    verl loads plug-ins while it is being imported itself, and they must not import the rest of it.
    """
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        action(module)
    else:
        sys.meta_path.insert(0, _Waiting(name, action))


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds one module as the others would, and has an action follow its execution."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self._name, self._action = name, action

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute, action = spec.loader.exec_module, self._action

            def then(module: ModuleType) -> None:
                execute(module)
                action(module)

            spec.loader.exec_module = then  # type: ignore[method-assign]
        return spec
