"""Tasks by name."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from logitless.rl.tasks.base import Task
from logitless.rl.tasks.reasoning_gym import ReasoningGym
from logitless.rl.tasks.sum_to_n import SumToN

TASKS: dict[str, Callable[..., Task]] = {"sum_to_n": SumToN}


def load_task(name: str, options: Mapping[str, Any]) -> Task:
    """The task a recipe names: built-in, "reasoning_gym:NAME" or "module:attribute" (a callable).

    ValueError where the name is unknown or what it names has no `prompts` and `reward`;
    ModuleNotFoundError where its module or extra is not installed.
    """
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
        if not hasattr(home := importlib.import_module(module), attribute):
            raise ValueError(f"task '{name}' names nothing in {module}")
        make = getattr(home, attribute)
    task = make(**options)
    if not isinstance(task, Task):
        raise ValueError(
            f"task '{name}' must have prompts(rng, n) and reward(prompt, completion), got {task!r}"
        )
    return task
