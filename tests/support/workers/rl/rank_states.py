"""One of several gloo ranks that train a recipe: after each step all hold the same state, bit for
bit, though one of them adds up entropies in another order. Run by test_ranks_methods.py."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from logitless.rl.demo.job import run
from logitless.rl.engine import LocalEngine, ranks
from logitless.rl.recipe import load_recipe
from logitless.rl.update.controller import Follower

SEEN = {"weights": 0, "controllers": 0}


def digest(engine: LocalEngine) -> dict[str, str]:
    """Of weights, the optimizer's state and a reference."""
    state = engine._optimizer.state_dict()["state"]
    parts: dict[str, Any] = {
        "weights": list(engine.policy.model.parameters()),
        "optimizer": [value for place in state.values() for value in place.values()],
    }
    if engine.reference is not None:
        parts["reference"] = [own for own, _ in engine.reference._pairs.values()]
    return {
        name: hashlib.sha256(b"".join(x.detach().numpy().tobytes() for x in tensors)).hexdigest()
        for name, tensors in parts.items()
    }


def assert_same(what: str, value: Any) -> None:
    found = ranks.each(lambda: value)
    assert all(other == found[0] for other in found), (what, found)
    SEEN[what] += 1


def watch(rank: int) -> None:
    advance, moved = LocalEngine.advance, Follower._moved

    def watched_advance(self: LocalEngine) -> None:
        advance(self)
        assert_same("weights", digest(self))

    def watched_moved(self: Follower, spec: Any, part: Any, field: str, entropy: float) -> Any:
        found = moved(self, spec, part, field, entropy * (1 + rank * 1e-6))
        assert_same("controllers", self._controller.state_dict())
        return found

    LocalEngine.advance = watched_advance  # type: ignore[method-assign]
    Follower._moved = watched_moved  # type: ignore[method-assign]


def main() -> None:
    rank, count, store = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    recipe, out, *options = sys.argv[4:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=count)
    watch(rank)
    assert run(load_recipe(recipe, options), Path(out)) == 0
    assert all(SEEN.values()), SEEN
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads may outlive the group, and at a normal exit abort the process once in a while
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
