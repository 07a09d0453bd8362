"""Weights that are spread over the ranks, by torch's fully_shard: each rank has a share of every
parameter, of its gradient and of the optimizer's state, and gathers a layer when it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from logitless.rl.engine import ranks
from logitless.rl.engine.layers import layers_of
from logitless.rl.engine.parts import freeze_others
from logitless.rl.policy import Policy
from logitless.rl.policy.lora import of_layer
from logitless.rl.policy.models import buffers
from logitless.rl.recipe import UpdateRecipe

KEY = "distributed.shard"


def spread(policy: Policy, update: UpdateRecipe) -> Policy:
    """The first rank's policy, of which each rank keeps its share; the model itself is changed.
    Collective."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = policy.model
    ranks.copy_first(list(model.parameters()))
    # a gathered parameter has a gradient for good if it has one at first
    freeze_others(policy, update)
    mesh = init_device_mesh(policy.device.type, (ranks.count(),))
    for layer in layers_of(model, KEY):
        fully_shard(layer, mesh=mesh)
    # Embedding and head are in the model's own group, which is gathered twice as well.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for module in groups(model):
        # Losses have the normaliser of the whole minibatch.
        module.set_gradient_divide_factor(1.0)
        # gloo knows no sum that is multiplied
        module.set_force_sum_reduction_for_comms(True)
    policy = _with_parts(policy, head_parameters(policy))
    one = torch.zeros(1, 1, dtype=torch.long, device=policy.device)
    with torch.no_grad():
        # The model learns that it is the one around all groups before one of them is gathered.
        policy.states(one, one == 0)
    return policy


def take(policy: Policy, source: Policy) -> None:
    """The weights of another policy, the first rank's, which may be whole where this one is spread.
    Collective."""
    ranks.copy_first(list(source.model.parameters()))
    restore(policy, source.snapshot())


def restore(policy: Policy, weights: dict[str, Tensor]) -> None:
    """policy.restore(weights) of whole weights; each rank has its share of what is spread."""
    own = policy.model.state_dict()
    policy.restore({name: cut_like(x, own.get(name)) for name, x in weights.items()})


def is_spread(model: Any) -> bool:
    return bool(groups(model))


@contextmanager
def gathered(policy: Policy) -> Iterator[Policy]:
    """In here a rank has all weights as they are now, without gradients, and a forward sends
    nothing: ranks may differ in what they run. Collective."""
    modules = groups(policy.model)
    for module in modules:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        now = {name: p.detach() for name, p in head_parameters(policy).items()}
        yield with_head(policy, now)
    finally:
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def groups(model: Any) -> list[Any]:
    """The modules that are gathered as a whole, FSDPModules."""
    if ranks.alone():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def state_of(model: Any) -> dict[str, Tensor]:
    """state_dict() of a model that is gathered, which would give it back to the ranks."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: p.detach() for name, p in named} | buffers(model)


def head_parameters(policy: Policy) -> dict[str, Tensor]:
    """Weight and bias of the head, and A and B of its adapter, as its layer has them now."""
    layer = policy.model.get_output_embeddings()
    found = {"weight": layer.weight, "bias": getattr(layer, "bias", None), **of_layer(layer)}
    return {name: p for name, p in found.items() if p is not None}


def with_head(policy: Policy, whole: dict[str, Tensor]) -> Policy:
    """The policy whose head has these parameters, without the rows that make no logit."""
    vocab = policy.head.vocab
    return _with_parts(policy, {name: p if name == "A" else p[:vocab] for name, p in whole.items()})


def _with_parts(policy: Policy, parts: dict[str, Tensor]) -> Policy:
    """The policy whose head has what `head_parameters` names."""
    changed: dict[str, Any] = {name: p for name, p in parts.items() if name not in ("A", "B")}
    if "A" in parts:
        ((*_, scale),) = policy.head.adapter
        changed["adapter"] = ((parts["A"], parts["B"], scale),)
    return replace(policy, head=policy.head._replace(**changed))


def own(tensor: Any) -> Tensor:
    """This rank's share of it; all of it, where it is not spread."""
    found: Tensor = tensor.to_local() if is_share(tensor) else tensor
    return found


def cut_like(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor, which all ranks have, spread as `like` is; a number stays one."""
    if not is_share(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # without a source each rank cuts its own
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def is_share(tensor: Any) -> bool:
    """Whether it is a DTensor, a class that takes long to import."""
    return hasattr(tensor, "device_mesh")
