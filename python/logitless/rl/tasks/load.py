"""Tasks by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from logitless.rl.recipe import STEPWISE
from logitless.rl.tasks.arithmetic import Arithmetic
from logitless.rl.tasks.attempts import number
from logitless.rl.tasks.base import Task
from logitless.rl.tasks.bundled import BUNDLED
from logitless.rl.tasks.judges import Column, FunctionJudge, Judge, Rewarded, TaskJudge, rewarded
from logitless.rl.tasks.prompt_file import PromptFile
from logitless.rl.tasks.reasoning_gym import ReasoningGym
from logitless.rl.tasks.stepwise import Stepwise
from logitless.rl.tasks.sum_to_n import SumToN
from logitless.rl.tasks.user_code import named, of_user

TASKS: dict[str, Callable[..., Task]] = {"sum_to_n": SumToN, "arithmetic": Arithmetic}
# In place of a function: the reward that the task has itself.
OWN = "task"


def load_task(
    name: str | None,
    options: Mapping[str, Any],
    prompts: str | None = None,
    reward: str | None = None,
    rewards: Mapping[str, Any] | None = None,  # RewardRecipe
    device: str = "cpu",
) -> Task:
    """The task a recipe names: built-in, "reasoning_gym:NAME", or "module:attribute" or
    "file.py:attribute" (a callable); None: sum_to_n. Or with `prompts`, a file, and `reward`, a
    function named alike, the two together. With `rewards` an answer's reward is their weighted sum.
    device: of the models of bundled rewards, where their options name no other.

    ValueError where the name is unknown or what it names has no `prompts` and `reward`;
    ModuleNotFoundError where its module or extra is not installed.
    """
    if prompts is None and reward is None:
        task = _of_name(name, options)
        return rewarded(task, _columns(rewards, task, device)) if rewards else task
    if prompts is None or (reward is None) == (not rewards):
        given = (
            f"task.prompts={prompts}, task.reward={reward} and task.rewards={list(rewards or {})}"
        )
        raise ValueError(
            "task.prompts and task.reward go together, or task.prompts and task.rewards; got "
            f"{given}"
        )
    if name is not None or options:
        raise ValueError(
            f"task.name and task.options make no sense with task.prompts={prompts}, got "
            f"task.name={name} and task.options={dict(options)}"
        )
    if reward is None:
        return rewarded(PromptFile(prompts), _columns(rewards or {}, None, device))
    only = Column(_judge("task.reward", reward, {}, takes_of=False, device=device))
    return Rewarded(PromptFile(prompts), {"reward": only}, apart=False)


def _of_name(name: str | None, options: Mapping[str, Any]) -> Task:
    name = "sum_to_n" if name is None else name
    module, colon, attribute = name.partition(":")
    if not colon:
        make = _known("task", name, TASKS)
    elif module == "reasoning_gym":
        make = partial(ReasoningGym, attribute)
    else:
        make = named("task", name)
    try:
        with of_user(f"making task '{name}'"):
            task = make(**options)
    except TypeError as error:
        raise ValueError(f"recipe key 'task.options' with task '{name}': {error}") from error
    if not isinstance(task, Task):
        raise ValueError(
            f"task '{name}' must have prompts(rng, n) and reward(prompt, completion), got {task!r}"
        )
    return task


def _columns(rewards: Mapping[str, Any], task: Task | None, device: str) -> dict[str, Column]:
    """task: None: prompts that have no reward of their own."""
    found: dict[str, Column] = {}
    for name, wanted in rewards.items():
        path = f"task.rewards.{name}"
        for other in wanted.of:
            if other not in found:
                raise ValueError(
                    f"recipe key '{path}.of' must name rewards that stand above it, got '{other}' "
                    f"with {', '.join(found) or 'none'} above"
                )
        judge: Judge
        if wanted.function == OWN:
            if task is None or wanted.options or wanted.of:
                raise ValueError(
                    f"recipe key '{path}.function' can be '{OWN}' for a task with a reward of its "
                    f"own, without options and of; got options={wanted.options}, of={wanted.of} "
                    f"and {'a file of prompts' if task is None else 'such a task'}"
                )
            judge = TaskJudge(task)
        else:
            takes_of = bool(wanted.of)
            judge = _judge(
                f"{path}.function", wanted.function, wanted.options, takes_of=takes_of,
                steps=wanted.steps, device=device,
            )  # fmt: skip
        by_steps = wanted.steps is not None
        found[name] = Column(judge, wanted.weight, wanted.threshold, wanted.of, by_steps)
    return found


def _judge(
    key: str,
    function: str,
    options: Mapping[str, Any],
    *,
    takes_of: bool,
    steps: str | None = None,
    device: str,
) -> FunctionJudge:
    """A bundled function by its name, or a class of a user's, made with the options; or a user's
    function, called with them."""
    # a bundled function of steps rewards them whether the recipe asks for them or not
    whole = "sum" if steps is None and function in STEPWISE else steps
    read = number if whole is None else partial(Stepwise.read, whole=whole)
    own = ":" in function or function.endswith(".py")
    made = named(key, function) if own else _known(key, function, BUNDLED)
    if not callable(made):
        raise ValueError(f"{key} '{function}' must be a function, got {made!r}")
    try:
        if own and not isinstance(made, type):
            return FunctionJudge(made, options, takes_of, read)
        if not own and "device" in inspect.signature(made).parameters:
            options = {"device": device, **options}
        with of_user(f"making {key} '{function}'"):
            reward = made(**options)
        return FunctionJudge(reward, {}, takes_of, read)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} '{function}': {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{key} '{function}': {error}") from error


def _known(what: str, name: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name[:200], table, n=1)
    known = f"known: {', '.join(table)}, or 'module:attribute' of your own"
    hint = f"did you mean '{near[0]}'?" if near else known
    raise ValueError(f"{what} '{name[:200]}' is unknown; {hint}")
