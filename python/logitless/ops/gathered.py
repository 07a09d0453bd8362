"""Public: the whole of a sharded weight, whose gradient goes back the way its engine's would."""

from __future__ import annotations

from typing import Any

from logitless.inputs.checks import choice, shown
from logitless.inputs.naming import public
from logitless.inputs.weights import refuse_placeholder

REDUCE = ("avg", "sum")


@public
def gathered(weight: Any, *, reduce: str = "avg") -> Any:
    """The whole weight (or bias) of a head whose engine holds it in parts.

    Equivalent plain code, for a DTensor::

        over_ranks = [Partial(reduce)] * weight.device_mesh.ndim
        weight.full_tensor(grad_placements=over_ranks)

    A plain tensor or Parameter is returned as it is, the same object: the call may stay where a
    model runs with and without an engine, inside the forward that gathers its weights or outside.

    reduce: how the engine combines the gradients of the ranks of the mesh. "avg" is FSDP2's
        default, where each rank has its own tokens, also on a 2-D mesh of replicas and shards. It
        is right too where ranks share their tokens (tensor parallel), for their gradients are
        equal; `vocab_group` makes their products once instead of on every rank. "sum" is for
        models after `set_gradient_divide_factor(1.0)`. The bare `weight.full_tensor()` takes the
        gradient of one rank's tokens for that of all, and is wrong with both.

    Collective: all ranks of the mesh make the call, and run its backward where there is one. The
    result has the dtype in which the engine stores the parameter, in which its gradient is reduced
    too; under FSDP2's mixed precision pass `gathered(weight).to(hidden.dtype)`.

    Raises TypeError for what is no torch tensor, ValueError for another name of `reduce` and for
    a placeholder that ZeRO-3 leaves of a parameter.
    """
    import torch

    if not isinstance(weight, torch.Tensor):
        raise TypeError(
            f"weight must be a torch tensor, got {shown(weight)}, a {type(weight).__name__}; of a "
            "module pass its weight"
        )
    choice("reduce", reduce, REDUCE)
    if type(weight).__name__ != "DTensor":
        refuse_placeholder("gathered", weight)
        return weight
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(weight, DTensor)
    over_ranks = [Partial(reduce)] * weight.device_mesh.ndim
    return weight.full_tensor(grad_placements=over_ranks)
