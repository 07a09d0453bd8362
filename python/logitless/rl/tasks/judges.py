"""Functions that reward answers, a column each, and their weighted sum."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from logitless.rl.tasks.attempts import Found, Read, at_once, number, one_by_one, placed
from logitless.rl.tasks.base import Prompt, Task, TaskOfBatches, TaskWithSolutions
from logitless.rl.tasks.following import Following

# What the trainer knows of an answer, for functions that have a parameter of that name.
KNOWN = ("answer_tokens", "of")


class Asked(NamedTuple):
    """Answers to score, those to a prompt together."""

    prompts: Sequence[Prompt]  # one for each answer
    texts: Sequence[str]
    # of each answer, the end token included; None: not known
    tokens: Sequence[int] | None
    group: int  # answers to a prompt


class Judge(Protocol):
    def found(
        self, asked: Asked, of: Sequence[Sequence[Found]], seconds: float | None
    ) -> list[Found]:
        """The reward of each answer; of: rewards of other columns."""
        ...


class TaskJudge:
    """The reward that a task has itself."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def found(
        self, asked: Asked, of: Sequence[Sequence[Found]], seconds: float | None
    ) -> list[Found]:
        if isinstance(self.task, TaskOfBatches):
            call = partial(self.task.rewards, asked.prompts, asked.texts)
            return placed(at_once(call, asked.texts, seconds=seconds), self.task.rewards)
        pairs = zip(asked.prompts, asked.texts, strict=True)
        calls = [partial(self.task.reward, prompt, text) for prompt, text in pairs]
        found = one_by_one(calls, asked.texts, asked.group, seconds=seconds)
        return placed(found, self.task.reward)


class FunctionJudge:
    """A function, which is called in one of three ways, by the names of its parameters:

        score(prompt, completion, **row, **options)     for each answer, a number
        score(prompt, completions, **row, **options)    for each prompt, a list
        score(prompts, completions, rows, **options)    once for all answers, a list

    A row has the other keys of a prompt's line, or is {"data": prompt.data} where a task has data
    of another kind. A function that has a parameter `answer_tokens` is given the number of tokens
    of the answer, one that has `of` the list of the answer's rewards in other columns; where it is
    called for several answers each of these numbers is a list, an entry an answer.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        options: Mapping[str, Any],
        takes_of: bool,
        read: Read = number,
    ) -> None:
        """read: what the function returns for an answer, as a reward.

        ValueError where the function has no `of` and should, or the other way round, or one of
        the options is none of its parameters."""
        parameters = inspect.signature(function).parameters
        self.function, self.options, self.read = function, dict(options), read
        self.of_all = {"prompts", "completions", "rows"} <= set(parameters)
        self.of_group = {"prompt", "completions"} <= set(parameters)
        self.known = [name for name in KNOWN if name in parameters]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name in self.options:
            if name in KNOWN or not (open_ended or name in parameters):
                raise ValueError(f"options have '{name}', which it cannot be given")
        if takes_of != ("of" in self.known):
            raise ValueError(
                "of must name other rewards for a function with a parameter 'of', and for no other"
            )
        if takes_of and self.of_all:
            raise ValueError("a function of all answers cannot have a parameter 'of'")

    def found(
        self, asked: Asked, of: Sequence[Sequence[Found]], seconds: float | None
    ) -> list[Found]:
        return placed(self._found(asked, of, seconds), self.function)

    def _found(
        self, asked: Asked, of: Sequence[Sequence[Found]], seconds: float | None
    ) -> list[Found]:
        if self.of_all:
            call = partial(self.call_of_all, asked)
            return at_once(call, asked.texts, self.read, seconds)
        if self.of_group:
            return self.found_of_groups(asked, of, seconds)
        every = range(len(asked.texts))
        calls = [partial(self.call, asked, i, [column[i] for column in of]) for i in every]
        return one_by_one(calls, asked.texts, asked.group, self.read, seconds)

    def found_of_groups(
        self, asked: Asked, of: Sequence[Sequence[Found]], seconds: float | None
    ) -> list[Found]:
        found: list[Found] = []
        for start in range(0, len(asked.texts), asked.group):
            place = slice(start, start + asked.group)
            call = partial(self.call_of_group, asked, place, [column[place] for column in of])
            found += at_once(call, asked.texts[place], self.read, seconds)
        return found

    def call(self, asked: Asked, i: int, of: Sequence[Found]) -> Any:
        raise_first(of)
        given: dict[str, Any] = {}
        if "of" in self.known:
            given["of"] = list(of)
        if "answer_tokens" in self.known:
            given["answer_tokens"] = known_tokens(asked)[i]
        prompt = asked.prompts[i]
        more = together(row_of(prompt), self.options, given)
        return self.function(prompt.text, asked.texts[i], **more)

    def call_of_group(self, asked: Asked, place: slice, of: Sequence[Sequence[Found]]) -> Any:
        for column in of:
            raise_first(column)
        given: dict[str, Any] = {}
        if "of" in self.known:
            given["of"] = [list(column) for column in of]
        if "answer_tokens" in self.known:
            given["answer_tokens"] = list(known_tokens(asked)[place])
        prompt = asked.prompts[place.start]
        more = together(row_of(prompt), self.options, given)
        return self.function(prompt.text, list(asked.texts[place]), **more)

    def call_of_all(self, asked: Asked) -> Any:
        given = {"answer_tokens": list(known_tokens(asked))} if self.known else {}
        return self.function(
            prompts=[prompt.text for prompt in asked.prompts],
            completions=list(asked.texts),
            rows=[row_of(prompt) for prompt in asked.prompts],
            **self.options,
            **given,
        )


class Column(NamedTuple):
    judge: Judge
    weight: float = 1.0
    # a reward is 1 from here on, and 0 below; None: as it is
    threshold: float | None = None
    # the columns before this one that the judge is given
    of: Sequence[str] = ()
    # whether its rewards are Stepwise
    by_steps: bool = False


class Rewarded:
    """A task's prompts; the reward of an answer is the weighted sum of several."""

    def __init__(self, task: Any, columns: Mapping[str, Column], *, apart: bool = True) -> None:
        """apart: whether the columns are worth a number each."""
        self.task, self.columns, self.apart = task, dict(columns), apart
        # the column whose rewards are of steps; None: there is none
        self.stepwise = next((name for name, x in self.columns.items() if x.by_steps), None)
        self.following = Following(
            {
                name: (column.judge.function, column.of)
                for name, column in self.columns.items()
                if isinstance(column.judge, FunctionJudge)
            }
        )

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        found: list[Prompt] = self.task.prompts(rng, n)
        return found

    def reward(self, prompt: Prompt, completion: str) -> float:
        """Of one answer, of which nothing but its text is known."""
        reward = self.total(self.found(Asked([prompt], [completion], None, 1), None), 0)
        if isinstance(reward, BaseException):
            raise reward
        return reward

    def found(self, asked: Asked, seconds: float | None) -> dict[str, list[Found]]:
        """Of each column the rewards of all answers."""
        done: dict[str, list[Found]] = {}
        for name, column in self.columns.items():
            rewards = column.judge.found(asked, [done[other] for other in column.of], seconds)
            done[name] = [cut(reward, column.threshold) for reward in rewards]
        return done

    def total(self, done: Mapping[str, Sequence[Found]], i: int) -> Found:
        """The weighted sum of the i-th answer, or the first error of its columns."""
        total = 0.0
        for name, column in self.columns.items():
            reward = done[name][i]
            if isinstance(reward, BaseException):
                return reward
            total += column.weight * reward
        return total


class RewardedWithSolutions(Rewarded):
    def solution(self, rng: random.Random, prompt: Prompt) -> str:
        text: str = self.task.solution(rng, prompt)
        return text


def rewarded(task: Any, columns: Mapping[str, Column]) -> Rewarded:
    """A warm-up still has the task's solutions."""
    kind = RewardedWithSolutions if isinstance(task, TaskWithSolutions) else Rewarded
    return kind(task, columns)


def following_of(task: Any) -> Following:
    """The rewards of a task that follow training."""
    return task.following if isinstance(task, Rewarded) else Following({})


def raise_first(found: Sequence[Found]) -> None:
    """The first error among rewards."""
    for reward in found:
        if isinstance(reward, BaseException):
            raise reward


def known_tokens(asked: Asked) -> Sequence[int]:
    if asked.tokens is None:
        raise ValueError(
            "answer_tokens are not known of an answer that is scored by its text alone"
        )
    return asked.tokens


def cut(reward: Found, threshold: float | None) -> Found:
    if threshold is None or isinstance(reward, BaseException):
        return reward
    return float(reward >= threshold)


def row_of(prompt: Prompt) -> dict[str, Any]:
    data = prompt.data
    return data if isinstance(data, dict) else {"data": data}


def together(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """ValueError where two have one key: one of them would be lost."""
    whole: dict[str, Any] = {}
    for part in parts:
        for name in part:
            if name in whole:
                raise ValueError(f"the key '{name}' comes twice, of the row and of the recipe")
        whole.update(part)
    return whole
