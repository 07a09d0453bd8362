"""The policy that a KL term compares with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from logitless.rl.engine import stored
from logitless.rl.policy import Policy
from logitless.rl.recipe import ReferenceRecipe

NAME = "reference"


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

    def save(self, folder: Path) -> None:
        """A frozen one is the policy that every run starts with: there is nothing to save.
        Collective."""
        if self._recipe.kind != "frozen":
            stored.write(self._tensors(), folder / NAME)

    def load(self, folder: Path) -> None:
        if self._recipe.kind != "frozen":
            stored.read(stored.find(folder / NAME), self._tensors(), folder / NAME)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: own for name, (own, _) in self._pairs.items()}
