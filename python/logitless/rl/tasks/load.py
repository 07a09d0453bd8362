"""Tasks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from logitless.rl.tasks.arithmetic import Arithmetic
from logitless.rl.tasks.base import Task
from logitless.rl.tasks.prompt_file import PromptFile
from logitless.rl.tasks.reasoning_gym import ReasoningGym
from logitless.rl.tasks.sum_to_n import SumToN
from logitless.rl.tasks.user_code import named

TASKS: dict[str, Callable[..., Task]] = {"sum_to_n": SumToN, "arithmetic": Arithmetic}


def load_task(
    name: str | None,
    options: Mapping[str, Any],
    prompts: str | None = None,
    reward: str | None = None,
) -> Task:
    """The task a recipe names: built-in, "reasoning_gym:NAME", or "module:attribute" or
    "file.py:attribute" (a callable); None: sum_to_n. Or with `prompts`, a file, and `reward`, a
    function named alike, the two together.

    ValueError where the name is unknown or what it names has no `prompts` and `reward`;
    ModuleNotFoundError where its module or extra is not installed.
    """
    if prompts is not None or reward is not None:
        return _of_file(name, options, prompts, reward)
    name = "sum_to_n" if name is None else name
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in TASKS:
            near = difflib.get_close_matches(name[:200], TASKS, n=1)
            known = f"known: {', '.join(TASKS)}, or 'module:attribute' of your own"
            hint = f"did you mean '{near[0]}'?" if near else known
            raise ValueError(f"task '{name[:200]}' is unknown; {hint}")
        make = TASKS[name]
    elif module == "reasoning_gym":
        make = partial(ReasoningGym, attribute)
    else:
        make = named("task", name)
    task = make(**options)
    if not isinstance(task, Task):
        raise ValueError(
            f"task '{name}' must have prompts(rng, n) and reward(prompt, completion), got {task!r}"
        )
    return task


def _of_file(
    name: str | None, options: Mapping[str, Any], prompts: str | None, reward: str | None
) -> Task:
    if prompts is None or reward is None:
        given = f"task.prompts={prompts} and task.reward={reward}"
        raise ValueError(f"task.prompts and task.reward go together, got {given}")
    if name is not None or options:
        raise ValueError(
            f"task.name and task.options make no sense with task.prompts={prompts}, got "
            f"task.name={name} and task.options={dict(options)}"
        )
    score = named("task.reward", reward)
    if not callable(score):
        raise ValueError(f"task.reward '{reward}' must be a function, got {score!r}")
    return PromptFile(prompts, score)
