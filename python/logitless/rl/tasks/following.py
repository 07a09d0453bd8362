"""Rewards that follow training: what they go by changes from step to step."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from logitless.rl.tasks.base import Text
from logitless.rl.tasks.user_code import of_user

# In a checkpoint.
FILE = "rewards.json"


class Group(NamedTuple):
    """The answers of a step to one of its prompts."""

    prompt: Text
    completions: Sequence[str]
    # of each answer, the end token included
    answer_tokens: Sequence[int]
    # the answers' rewards in each column that the reward is given
    of: Sequence[Sequence[float]]


@runtime_checkable
class FollowsTraining(Protocol):
    """What a reward has beside its call to follow training. Everything that changes is in
    `state_dict`, as JSON."""

    def after_step(self, groups: Sequence[Group]) -> dict[str, float]:
        """All answers of a step that have rewards; returns numbers for the metrics of that
        step."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Answered(NamedTuple):
    """All answers of a step that have rewards, those to a prompt together."""

    prompts: Sequence[Text]  # one for each group
    completions: Sequence[str]
    answer_tokens: Sequence[int]
    # of each reward, [prompts][group]
    columns: Mapping[str, Sequence[Sequence[float]]]

    def groups(self, of: Sequence[str]) -> list[Group]:
        """Every rank makes the same of them, since all have the same numbers."""
        size = len(self.completions) // len(self.prompts)
        return [
            Group(
                prompt,
                self.completions[i * size : (i + 1) * size],
                self.answer_tokens[i * size : (i + 1) * size],
                [self.columns[name][i] for name in of],
            )
            for i, prompt in enumerate(self.prompts)
        ]


class Followed(NamedTuple):
    reward: FollowsTraining
    # names of the columns that it is given
    of: Sequence[str]
    # its state before any step
    start: dict[str, Any]


class Following:
    """The rewards of a task that follow training, often none, by the names of their columns."""

    def __init__(self, rewards: Mapping[str, tuple[Any, Sequence[str]]]) -> None:
        self._rewards = {
            name: Followed(reward, of, copy.deepcopy(reward.state_dict()))
            for name, (reward, of) in rewards.items()
            if isinstance(reward, FollowsTraining)
        }

    def begin(self) -> None:
        """Every method starts from the same."""
        for one in self._rewards.values():
            one.reward.load_state_dict(copy.deepcopy(one.start))

    def after_step(self, answered: Answered) -> dict[str, float]:
        """The numbers of all rewards, as metrics."""
        row: dict[str, float] = {}
        for name, one in self._rewards.items():
            with of_user(f"after_step of the reward '{name}'"):
                found = one.reward.after_step(answered.groups(one.of))
            row |= {f"reward_state/{name}/{key}": float(x) for key, x in found.items()}
        return row

    def save(self, folder: Path) -> None:
        if self._rewards:
            state = {name: one.reward.state_dict() for name, one in self._rewards.items()}
            (folder / FILE).write_text(json.dumps(state), "utf-8")

    def load(self, folder: Path) -> None:
        """What `save` wrote, bit for bit."""
        if self._rewards:
            state = json.loads((folder / FILE).read_text("utf-8"))
            for name, one in self._rewards.items():
                one.reward.load_state_dict(state[name])
