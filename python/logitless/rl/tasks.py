"""Tasks: where prompts come from and what an answer is worth. The plug-in is two methods.

    class Shout:
        def prompts(self, rng, n): return [Prompt("say hello loudly:")] * n
        def reward(self, prompt, completion): return float(completion.isupper())

Put `task: {name: "my_module:Shout", options: {...}}` in a recipe; the options are its arguments.
A task with `solution(rng, prompt) -> str` can also be warmed up on (see warmup.py).
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from logitless.rl.recipe import TaskRecipe, unknown_key

# reasoning-gym gives 0.01 or 0.05 to some wrong answers; group normalization would turn that noise
# into advantages.
RIGHT = 0.99


class Prompt(NamedTuple):
    text: str
    # Whatever `reward` needs to judge: the task's own business.
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
        return float(self._scorer.score_answer(completion.strip(), prompt.data) >= RIGHT)

    def solution(self, rng: random.Random, prompt: Prompt) -> str:
        return str(prompt.data["answer"])

    def _prompt_text(self, entry: dict[str, Any]) -> str:
        return str(entry["question"] if self._text == "question" else entry["metadata"][self._text])


TASKS: dict[str, Callable[..., Task]] = {"sum_to_n": SumToN}


def load_task(recipe: TaskRecipe) -> Task:
    """The task a recipe names: built-in, "reasoning_gym:NAME" or "module:attribute" (a callable).

    ValueError where the name is unknown or what it names has no `prompts` and `reward`;
    ModuleNotFoundError where its module or extra is not installed.
    """
    module, colon, attribute = recipe.name.partition(":")
    if not colon:
        if recipe.name not in TASKS:
            raise ValueError(unknown_key("task", recipe.name, TASKS))
        make = TASKS[recipe.name]
    elif module == "reasoning_gym":
        make = lambda **options: ReasoningGym(attribute, **options)  # noqa: E731
    else:
        if not hasattr(home := importlib.import_module(module), attribute):
            raise ValueError(f"task '{recipe.name}' names nothing in {module}")
        make = getattr(home, attribute)
    task = make(**recipe.options)
    if not isinstance(task, Task):
        raise ValueError(
            f"task '{recipe.name}' must have prompts(rng, n) and reward(prompt, completion),"
            f" got {task!r}"
        )
    return task
