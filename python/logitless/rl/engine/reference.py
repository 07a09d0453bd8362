"""The policy that a KL term compares with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

import logitless as ll
from logitless.rl.engine.shards import cut_like
from logitless.rl.policy import Policy
from logitless.rl.recipe import ReferenceRecipe

FILE = "reference.safetensors"


class Reference:
    """The trained weights of a policy as they are now, which then go their own way."""

    def __init__(self, policy: Policy, recipe: ReferenceRecipe) -> None:
        self._recipe = recipe
        trained = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
        self._pairs = {name: (p.detach().clone(), p) for name, p in trained.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside of it the policy is the reference; after it, itself again, bit for bit.

        The numbers change places, a parameter at a time: heads that are a view of one stay true,
        and there is no second model.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for own, trained in self._pairs.values():
            kept = trained.detach().clone()
            trained.copy_(own)
            own.copy_(kept)

    @torch.no_grad()
    def advance(self, done: int) -> None:
        """After `done` RL steps."""
        if self._recipe.decay is not None:
            for own, trained in self._pairs.values():
                own.lerp_(trained, 1.0 - self._recipe.decay)
        elif self._recipe.every is not None and done % self._recipe.every == 0:
            for own, trained in self._pairs.values():
                own.copy_(trained)

    def state(self) -> dict[str, Tensor]:
        """Whole tensors of what `load` needs. A frozen one is the policy that every run starts
        with: there is nothing to save. Collective, where the parameters are spread."""
        if self._recipe.kind == "frozen":
            return {}
        return {name: ll.gathered(own).contiguous() for name, (own, _) in self._pairs.items()}

    def load(self, folder: Path) -> None:
        if self._recipe.kind != "frozen":
            tensors = load_file(folder / FILE)
            for name, (own, _) in self._pairs.items():
                own.copy_(cut_like(tensors[name], own))
