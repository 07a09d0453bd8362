"""FSDP2 around a tiny model on a CPU: by hand, or as accelerate prepares a model for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

# The head with the body's root, in a group of its own, or as accelerate groups it: with the last
# norm, and the embedding apart where it is not tied.
ENGINES = ("fsdp2", "fsdp2, own group", "fsdp2 of accelerate")


def shard(model: Any, engine: str) -> None:
    """In place, over all ranks of the group that is open."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if engine == "fsdp2 of accelerate":
        prepared(model)
        return
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    groups = [*model.model.layers, *([model.lm_head] if engine == "fsdp2, own group" else [])]
    for module in (*groups, model):
        fully_shard(module, mesh=mesh)


def prepared(model: Any) -> None:
    """By accelerate's own function. Its Accelerator is none: on CPUs it stays with DDP, so what the
    function reads of one stands here."""
    import torch
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, reshard_after_forward=True, cpu_ram_efficient_loading=False,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[type(model.model.layers[0]).__name__],
    )  # fmt: skip
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), device=torch.device("cpu"),
        mixed_precision="no", is_main_process=torch.distributed.get_rank() == 0,
    )  # fmt: skip
    assert fsdp2_prepare_model(accelerator, model) is model
