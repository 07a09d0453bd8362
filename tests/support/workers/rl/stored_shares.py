"""One of two gloo ranks: a checkpoint of shares is written and read without a whole tensor, and a
rank that cannot write is told of by all. Run by test_stored.py."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import logitless as ll
from logitless.rl.engine import LocalEngine, make_engine, ranks, spread
from logitless.rl.recipe import ReferenceRecipe, load_recipe
from tests.support.workers.rl.spread_model import ALL, backward, draw, make, whole


def is_plain(x: Any) -> bool:
    """A tensor with numbers; DTensor has others of its own, of a shape alone."""
    return type(x) in (torch.Tensor, torch.nn.Parameter) and not x.is_meta


def at(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


class Largest(TorchDispatchMode):
    """The most numbers that a tensor of floats has which this rank makes."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            # the operations on its shares come here
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        given = {at(x) for x in tree_leaves((args, kwargs)) if is_plain(x)}
        # views have no memory of their own: so safetensors shows a file before a slice is read
        made = [x for x in tree_leaves(out) if is_plain(x) and at(x) not in given]
        sizes = [x.numel() for x in made if x.is_floating_point()]
        self.numbers = max(self.numbers, *sizes, 0)
        return out


def largest(work: Callable[[], Any]) -> int:
    with Largest() as seen:  # type: ignore[no-untyped-call]
        work()
    return seen.numbers


def state_of(engine: LocalEngine) -> list[torch.Tensor]:
    """This rank's shares of weights, moments and the reference."""
    assert engine.reference is not None
    states = [engine._optimizer.state[p] for p in engine.parameters]
    tensors: list[Any] = [
        *engine.policy.model.parameters(),
        *(own for own, _ in engine.reference._pairs.values()),
        *(state[name] for state in states for name in ("exp_avg", "exp_avg_sq", "step")),
    ]
    return [x.to_local() if isinstance(x, DTensor) else x for x in tensors]


def main() -> None:
    rank, count, store = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=count)
    recipe = load_recipe(sys.argv[4], ["update.embedding_lr=0.001"])
    expected = make("bias")
    rollout = draw(expected)
    policy = spread(make("bias"), recipe.update)
    engine = make_engine(policy, recipe.update, 1, ReferenceRecipe(kind="ema", decay=0.5))
    backward(engine, rollout, list(ALL[:4] if rank == 0 else ALL[4:]), recipe)
    engine.step()
    engine.advance()

    share = max(math.prod(p.to_local().shape) for p in policy.model.parameters())
    most = max(p.numel() for p in policy.model.parameters())
    # what is looked for would be seen
    assert largest(lambda: ll.gathered(policy.head_parameter)) >= most > share

    folder = store.parent / "saved"
    ranks.first(folder.mkdir)
    assert largest(partial(engine.save, folder)) <= share
    ranks.first(partial(policy.save_tokenizer, folder))
    before = [x.detach().clone() for x in state_of(engine)]
    with torch.no_grad():
        for x in state_of(engine):
            x.zero_()
    assert 0 < largest(partial(engine.load, folder)) <= share
    after = state_of(engine)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert sum(bool(x.any()) for x in after) > len(after) / 2
    named = policy.model.named_parameters()
    weights = {name: whole(p.detach()) for name, p in named}
    if rank == 0:
        from safetensors.torch import save_file

        save_file(weights, store.parent / "expected.safetensors")

    # A rank whose disk is full. Rank 0 does not see that itself.
    full = store.parent / "full"
    ranks.first(full.mkdir)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match=r"cannot write .*full/.*, [\d,]+ bytes: .*"):
            engine.save(full)
    else:
        with pytest.raises(ranks.OtherRank, match=r"rank 1: OSError: "):
            engine.save(full)
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads may outlive the group, and at a normal exit abort the process once in a while
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
