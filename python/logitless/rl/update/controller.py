"""A number of a loss that follows the entropy: the library's controllers, as recipes name them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import logitless as ll
from logitless.rl.engine import ranks
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
    """The number of a method's loss, optimizer step by optimizer step, on all ranks the same: each
    has the whole minibatch. `before` and `after` are collective."""

    number: float

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

    def before(self, spec: Any, minibatch: Packed) -> Any:
        """The loss of the next optimizer step, by the entropy of the rollout on its minibatch."""
        part = getattr(spec, self._kind.part)
        if isinstance(part, ll.Siren):
            return spec
        return self._moved(spec, part, part.moves, float(minibatch.old_entropy.mean()))

    def after(self, spec: Any, shared: dict[str, Any]) -> Any:
        """The same, once its batch is known: an anchor is the entropy that this has chosen. shared:
        batch_options."""
        part = getattr(spec, self._kind.part)
        if not isinstance(part, ll.Siren):
            return spec
        return self._moved(spec, part, "anchor", float(shared["batch"].selected_entropy))

    def _moved(self, spec: Any, part: Any, field: str, entropy: float) -> Any:
        # machines may add in other orders, and what follows must not drift apart
        self.number = self._controller.update(ranks.first(lambda: entropy))
        return replace(spec, **{self._kind.part: replace(part, **{field: self.number})})

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(self._controller.state_dict()), "utf-8")

    def load(self, folder: Path) -> None:
        """What `save` wrote, bit for bit."""
        self._controller.load_state_dict(json.loads((folder / FILE).read_text("utf-8")))


def follower_of(method: str, spec: Any, wanted: ControllerRecipe | None) -> Follower | None:
    """ValueError, naming the recipe's key, for what does not go with the loss."""
    return None if wanted is None else Follower(method, spec, wanted)
