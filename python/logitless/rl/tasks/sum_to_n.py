"""The bundled task: digits that add up to a number."""

from __future__ import annotations

import random

from logitless.rl.tasks.base import Prompt


class SumToN:
    """ "sum 17:" -> `digits` digits that add up to 17, like 8225: hundreds of right answers to a
    prompt.
    """

    def __init__(self, low: int = 10, high: int = 26, digits: int = 4) -> None:
        if not 0 <= low <= high <= 9 * digits:
            raise ValueError(
                f"sum_to_n needs 0 <= low <= high <= {9 * digits} (digits={digits}), got "
                f"low={low}, high={high}"
            )
        self.low, self.high, self.digits = low, high, digits

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        return [
            Prompt(f"sum {total}:", total)
            for total in (rng.randint(self.low, self.high) for _ in range(n))
        ]

    def reward(self, prompt: Prompt, completion: str) -> float:
        right_form = (
            len(completion) == self.digits and completion.isascii() and completion.isdigit()
        )
        return float(right_form and sum(map(int, completion)) == prompt.data)

    def solution(self, rng: random.Random, prompt: Prompt) -> str:
        digits, rest = [], prompt.data
        for left in range(self.digits - 1, -1, -1):
            digit = rng.randint(max(0, rest - 9 * left), min(9, rest))
            digits.append(digit)
            rest -= digit
        rng.shuffle(digits)
        return "".join(map(str, digits))
