"""Tasks of the reasoning-gym package."""

from __future__ import annotations

import importlib
import random
from typing import Any

from logitless.rl.tasks.base import Prompt


class ReasoningGym:
    """A task of the reasoning-gym package: options are its own, `text` picks "question" or a
    metadata key.
    """

    def __init__(self, dataset: str, text: str = "question", **options: Any) -> None:
        try:
            reasoning_gym = importlib.import_module("reasoning_gym")
        except ImportError as error:
            raise ModuleNotFoundError(
                f"task 'reasoning_gym:{dataset}' needs the reasoning-gym package: "
                "pip install 'logitless[reasoning-gym]'"
            ) from error
        self._create = reasoning_gym.create_dataset
        self._name, self._text, self._options = dataset, text, options
        self._scorer = self._create(dataset, size=1, seed=0, **options)

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        entries = self._create(self._name, size=n, seed=rng.getrandbits(31), **self._options)
        return [Prompt(self._prompt_text(entry), entry) for entry in (entries[i] for i in range(n))]

    def reward(self, prompt: Prompt, completion: str) -> float:
        return float(self._scorer.score_answer(completion.strip(), prompt.data))

    def solution(self, rng: random.Random, prompt: Prompt) -> str:
        return str(prompt.data["answer"])

    def _prompt_text(self, entry: dict[str, Any]) -> str:
        return str(entry["question"] if self._text == "question" else entry["metadata"][self._text])
