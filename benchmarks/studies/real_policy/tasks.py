"""Tasks of the study's own, and how often the untrained model is right."""

from __future__ import annotations

import random
import re
import string
from dataclasses import replace
from typing import Any

from benchmarks.studies.real_policy.setting import CANDIDATES, OWN, UNTRAINED, recipe_of
from logitless.rl.answers import task_of
from logitless.rl.evaluation import evaluate
from logitless.rl.policy import make_policy
from logitless.rl.recipe import TaskRecipe
from logitless.rl.tasks import Prompt, load_task
from logitless.rl.tracking.metrics import Row

_SUM = re.compile(r"(\d+) *\+ *(\d+)")
_NUMBER = re.compile(r"\d+")
# Shorter ones may be abbreviations.
SHORTEST = 3
CAPITALS = {
    "Austria": "Vienna", "China": "Beijing", "Cuba": "Havana", "Egypt": "Cairo",
    "France": "Paris", "Germany": "Berlin", "Greece": "Athens", "Hungary": "Budapest",
    "India": "New Delhi", "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo",
    "Kenya": "Nairobi", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Russia": "Moscow", "Spain": "Madrid", "Sweden": "Stockholm",
}  # fmt: skip


class Turn:
    """Another task, its prompts as a user's turn of SmolLM2 without the system's turn before it,
    which its chat template would add: 24 tokens that say who the assistant is."""

    def __init__(self, name: str, **options: Any) -> None:
        self._task = load_task(name, options)

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
        return [Prompt(turn.format(p.text), p.data) for p in self._task.prompts(rng, n)]

    def reward(self, prompt: Prompt, completion: str) -> float:
        return self._task.reward(prompt, completion)


class Pairs:
    """A sum of two whole numbers that equals a given one: the answer's first sum counts."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        totals = [rng.randint(self.low, self.high) for _ in range(n)]
        return [Prompt(f"Write a sum of two numbers that equals {t}.", t) for t in totals]

    def reward(self, prompt: Prompt, completion: str) -> float:
        found = _SUM.search(completion)
        return float(found is not None and sum(int(x) for x in found.groups()) == prompt.data)


class Words:
    """One word with a given first letter, and nothing else; no dictionary is asked."""

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        letters = [rng.choice(string.ascii_lowercase[:-3]) for _ in range(n)]
        ask = "Write one word that starts with the letter {}. Answer with the word only."
        return [Prompt(ask.format(letter), letter) for letter in letters]

    def reward(self, prompt: Prompt, completion: str) -> float:
        word = completion.strip().strip(".\"'").lower()
        one = word.isascii() and word.isalpha() and len(word) >= SHORTEST
        return float(one and word.startswith(prompt.data))


class Larger:
    """The larger of two different numbers: the answer's last number counts."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        pairs = [rng.sample(range(self.low, self.high + 1), 2) for _ in range(n)]
        ask = "Which number is larger, {} or {}? Answer with the number only."
        return [Prompt(ask.format(*pair), max(pair)) for pair in pairs]

    def reward(self, prompt: Prompt, completion: str) -> float:
        numbers = _NUMBER.findall(completion)
        return float(bool(numbers) and int(numbers[-1]) == prompt.data)


class Capitals:
    """A country's capital, named anywhere in the answer."""

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        countries = [rng.choice(sorted(CAPITALS)) for _ in range(n)]
        return [Prompt(f"What is the capital of {x}?", CAPITALS[x]) for x in countries]

    def reward(self, prompt: Prompt, completion: str) -> float:
        return float(re.search(rf"\b{prompt.data}\b", completion) is not None)


def measure(prompts: int, group: int) -> dict[str, Row]:
    """What the untrained model makes of every candidate."""
    recipe = recipe_of("sums", UNTRAINED, seed=0, steps=1)
    evaluation = replace(recipe.evaluation, prompts=prompts, group=group)
    policy = make_policy(recipe.model, recipe.seed)
    rows: dict[str, Row] = {}
    for title, options in CANDIDATES.items():
        task_recipe = TaskRecipe(name=f"{OWN}:Turn", options=options)
        one = replace(recipe, task=task_recipe, evaluation=evaluation)
        task = task_of(one)
        (prompt,) = task.prompts(random.Random(0), 1)
        rows[title] = {"prompt": asked(prompt)} | evaluate(policy, task, one)
        print(f"{title}: right {rows[title]['right']:.3f}", flush=True)
    return rows


def asked(prompt: Prompt) -> str:
    """What the user says."""
    return str(prompt.text).partition("user\n")[2].partition("<|im_end|>")[0]
