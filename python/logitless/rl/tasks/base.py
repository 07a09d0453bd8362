"""The two methods of a task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

# A text, or the messages of a chat, which the tokenizer's chat template makes one of.
Text: TypeAlias = "str | list[dict[str, Any]]"


class Prompt(NamedTuple):
    text: Text
    # Whatever the task's `reward` needs to judge an answer.
    data: Any = None


@runtime_checkable
class Task(Protocol):
    """All randomness comes from `rng`, which the trainer seeds per step: the same step has the same
    prompts.
    """

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]: ...

    def reward(self, prompt: Prompt, completion: str) -> float: ...


@runtime_checkable
class TaskOfBatches(Task, Protocol):
    """Rewards all answers of a step at once; prompts: one for each answer."""

    def rewards(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]: ...


@runtime_checkable
class TaskWithSolutions(Task, Protocol):
    def solution(self, rng: random.Random, prompt: Prompt) -> str: ...
