"""A bundled task for chat models: a sum of two numbers, asked in words."""

from __future__ import annotations

import operator
import random
import re

from logitless.rl.tasks.base import Prompt

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_NUMBER = re.compile(r"-?\d+")


class Arithmetic:
    """ "What is 7 + 5? Answer with the number only." -> an answer whose last number is 12."""

    def __init__(self, low: int = 1, high: int = 9, operation: str = "+") -> None:
        if not 0 <= low <= high:
            raise ValueError(f"arithmetic needs 0 <= low <= high, got low={low}, high={high}")
        if operation not in OPERATIONS:
            known = ", ".join(OPERATIONS)
            raise ValueError(f"arithmetic needs an operation of {known}, got {operation!r}")
        self.low, self.high, self.operation = low, high, operation

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        pairs = [
            (rng.randint(self.low, self.high), rng.randint(self.low, self.high)) for _ in range(n)
        ]
        return [
            Prompt(
                f"What is {a} {self.operation} {b}? Answer with the number only.",
                OPERATIONS[self.operation](a, b),
            )
            for a, b in pairs
        ]

    def reward(self, prompt: Prompt, completion: str) -> float:
        numbers = _NUMBER.findall(completion)
        return float(bool(numbers) and int(numbers[-1]) == prompt.data)
