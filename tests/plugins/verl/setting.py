"""verl on a CPU: a platform that it lacks, configurations, and batches of responses."""

from __future__ import annotations

import os
import types
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("verl.trainer", reason="verl is not installed: ./dev plugins has it")
    from verl.plugin.platform.platform_base import PlatformBase
    from verl.plugin.platform.platform_manager import set_platform


class Cpu(PlatformBase):  # type: ignore[misc]
    """What the engine asks of a device, answered for a CPU."""

    device_name, vendor_name = "cpu", "none"
    device_module = torch.cpu

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        return "CPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def is_ipc_supported(self) -> bool:
        return False

    def set_device(self, device_index: int) -> None: ...
    def synchronize(self, device_index: int | None = None) -> None: ...
    def manual_seed(self, seed: int) -> None: ...
    def manual_seed_all(self, seed: int) -> None: ...
    def set_allocator_settings(self, settings: str) -> None: ...
    def empty_cache(self) -> None: ...
    def nvtx_range(self, msg: str) -> Any: ...
    def profiler_start(self) -> None: ...
    def profiler_stop(self) -> None: ...
    def cudart(self) -> Any: ...


set_platform(Cpu())
# The engine is in verl's table for this device alone.
os.environ["VERL_ENGINE_DEVICE"] = "cuda"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import verl.trainer.ppo.core_algos as core_algos
    from verl.workers.config import ActorConfig
    from verl.workers.config.actor import PolicyLossConfig

    import logitless.integrations.verl as ours

B, T = 6, 9
LENGTHS = (9, 6, 3, 8, 1, 7)


class Batch(types.SimpleNamespace):
    """Of responses, [B, T]: off policy by noise, some ratios beyond every clip."""

    old_logp: Tensor
    logp: Tensor
    advantages: Tensor
    mask: Tensor
    weights: Tensor


def made(seed: int = 3) -> Batch:
    g = torch.Generator().manual_seed(seed)
    old = -torch.rand(B, T, generator=g) * 3 - 0.05
    mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    mask[0, 4] = False
    return Batch(
        old_logp=old,
        logp=(old + 0.4 * torch.randn(B, T, generator=g)).clamp(max=-0.01),
        advantages=torch.randn(B, 1, generator=g).expand(B, T) * mask,
        mask=mask,
        weights=torch.rand(B, T, generator=g) + 0.5,
    )


def actor_config(mode: str, **options: Any) -> Any:
    """`options` of the policy loss or of the actor."""
    known = PolicyLossConfig.__annotations__
    fields = {k: options.pop(k) for k in list(options) if k in known}
    return ActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, ppo_mini_batch_size=B,
        policy_loss=PolicyLossConfig(loss_mode=mode, **fields), **options,
    )  # fmt: skip


class Outcome(types.SimpleNamespace):
    loss: float
    gradient: Tensor
    metrics: dict[str, float]


def outcome(config: Any, batch: Batch, parts: int = 1, *, weights: bool = False) -> Outcome:
    """A loss of verl's table over micro-batches, as verl's `ppo_loss` calls it."""
    config.global_batch_info.update(
        dp_size=1, batch_num_tokens=batch.mask.sum().item(), global_batch_size=B,
        loss_scale_factor=config.loss_scale_factor,
    )  # fmt: skip
    function = core_algos.get_policy_loss_fn(config.policy_loss.loss_mode)
    logp = batch.logp.clone().requires_grad_()
    loss, metrics = 0.0, []
    torch.manual_seed(5)
    for rows in torch.arange(B).chunk(parts):
        value, found = function(
            old_log_prob=batch.old_logp[rows], log_prob=logp[rows],
            advantages=batch.advantages[rows], response_mask=batch.mask[rows],
            loss_agg_mode=config.loss_agg_mode, config=config,
            rollout_is_weights=batch.weights[rows] if weights else None,
        )  # fmt: skip
        value.backward()
        loss += value.item()
        metrics.append(found)
    mean = {k: sum(x[k] for x in metrics) / len(metrics) for k in metrics[0]}
    return Outcome(loss=loss, gradient=logp.grad, metrics=mean)


def away(a: Tensor, b: Tensor) -> float:
    """The largest difference to the largest entry."""
    return ((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item()


__all__ = [
    "B",
    "Batch",
    "Outcome",
    "T",
    "actor_config",
    "away",
    "core_algos",
    "made",
    "ours",
    "outcome",
]
