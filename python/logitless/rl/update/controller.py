"""A number of a loss that follows the entropy: the library's controllers, as recipes name them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import logitless as ll
from logitless.rl.recipe import ControllerRecipe
from logitless.rl.update.minibatch import Packed

FILE = "controller.json"


class Kind(NamedTuple):
    made: Any
    # the part of the loss that has the number, and what that may be
    part: str
    of: tuple[type, ...]


KINDS = {
    "anchor": Kind(ll.EntropyAnchor, "entropy", (ll.Siren,)),
    "log": Kind(ll.LogController, "entropy", (ll.EntropyBonus,)),
    "pi": Kind(ll.PIController, "control", (ll.Entropic,)),
    "repo": Kind(ll.RepoController, "control", (ll.RepoR, ll.RepoD)),
    "step": Kind(ll.StepController, "entropy", (ll.EntropyBonus,)),
}


class Follower:
    """The number of a method's loss, optimizer step by optimizer step."""

    def __init__(self, method: str, spec: Any, wanted: ControllerRecipe) -> None:
        self._kind = KINDS[wanted.kind]
        part = getattr(spec, self._kind.part)
        if not isinstance(part, self._kind.of):
            expected = " or ".join(x.__name__ for x in self._kind.of)
            raise ValueError(
                f"recipe key 'methods.{method}.controller.kind' is {wanted.kind}, which needs "
                f"{expected} as the loss's {self._kind.part}, got {part!r}"
            )
        try:
            self._controller = self._kind.made(**wanted.options)
        except (TypeError, ValueError) as error:
            key = f"methods.{method}.controller.options"
            raise ValueError(f"recipe key '{key}': {error}") from None

    def next(
        self, spec: Any, minibatch: Packed, shared: dict[str, Any]
    ) -> tuple[Any, dict[str, float]]:
        """The loss of the next optimizer step, and the number as a metric. shared: batch_options.

        The entropy that it follows is the rollout's, on the minibatch; that of an anchor is what
        the batch has chosen.
        """
        part = getattr(spec, self._kind.part)
        if isinstance(part, ll.Siren):
            field, entropy = "anchor", shared["batch"].selected_entropy
        else:
            field, entropy = part.moves, float(minibatch.old_entropy.mean())
        number = self._controller.update(entropy)
        moved = replace(spec, **{self._kind.part: replace(part, **{field: number})})
        return moved, {"actor/controlled": number}

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(self._controller.state_dict()), "utf-8")

    def load(self, folder: Path) -> None:
        """What `save` wrote, bit for bit."""
        self._controller.load_state_dict(json.loads((folder / FILE).read_text("utf-8")))


def follower_of(method: str, spec: Any, wanted: ControllerRecipe | None) -> Follower | None:
    """ValueError, naming the recipe's key, for what does not go with the loss."""
    return None if wanted is None else Follower(method, spec, wanted)
