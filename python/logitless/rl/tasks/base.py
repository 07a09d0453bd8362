"""The two methods of a task."""

from __future__ import annotations

import random
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Prompt(NamedTuple):
    text: str
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
class TaskWithSolutions(Task, Protocol):
    def solution(self, rng: random.Random, prompt: Prompt) -> str: ...
