"""The rewards of a step's answers, as a task returns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, compress
from typing import NamedTuple

import torch
from torch import Tensor

from logitless.rl.tasks.attempts import Found, described
from logitless.rl.tasks.base import Prompt, Task
from logitless.rl.tasks.judges import Asked, Rewarded, TaskJudge
from logitless.rl.tasks.stepwise import Step, Stepwise
from logitless.rl.tasks.user_code import UserCodeError


class RewardError(UserCodeError):
    """No answer of a step could be scored; the cause is the task's last error."""


class Scores(NamedTuple):
    rewards: Tensor  # [prompts, group] float32; 0 where there is none
    scored: Tensor  # [prompts] bool: every answer of the prompt has a reward
    failures: list[str]  # what went wrong, with file and line; each once
    # the last error; of the answers that this process has scored
    error: BaseException | None = None
    # of a task with several rewards each, by its name: as `rewards`, before its weight
    columns: Mapping[str, Tensor] = {}
    # where a reward is of steps, of each answer: the tokens up to a step's end, and its reward
    steps: Sequence[Sequence[Step]] | None = None

    @property
    def means(self) -> dict[str, float]:
        """Means of the rewards and of each column, and `reward_std`, the mean over the prompts of
        the standard deviation within their answers, where a prompt has several. Of prompts that
        have rewards."""
        named = {"": self.rewards, **{f"/{name}": x for name, x in self.columns.items()}}
        found = {f"reward{name}": float(x[self.scored].mean()) for name, x in named.items()}
        if self.rewards.shape[1] == 1:
            return found
        spread = {name: x[self.scored].std(dim=1).mean() for name, x in named.items()}
        return found | {f"reward_std{name}": float(x) for name, x in spread.items()}

    def of_prompts(self, which: Tensor) -> Scores:  # [prompts] bool
        """Those of some prompts, without what went wrong."""
        columns = {name: column[which] for name, column in self.columns.items()}
        steps = self.steps
        if steps is not None:
            of_answer = which.repeat_interleave(self.rewards.shape[1]).tolist()
            steps = list(compress(steps, of_answer))
        return Scores(self.rewards[which], self.scored[which], [], columns=columns, steps=steps)


def score(
    task: Task,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    threshold: float | None = None,
    *,
    tokens: Sequence[int] | None = None,  # of each answer; None: not known
    seconds: float | None = None,
    # from an answer's number and places in its text to how many tokens it takes to get there
    token_ends: Callable[[int, Sequence[int]], Sequence[int]] | None = None,
) -> Scores:
    """The reward of every answer; texts: [prompts * group], the answers of a prompt together.

    Rewards stay as the task returns them; with a threshold they become 1.0 from there on and 0.0
    below. An error, NaN, an infinity, or a call that takes more than `seconds` is no reward:
    advantages compare the answers of a prompt, so all of its group go without.
    """
    group = len(texts) // len(prompts)
    of_answers = [prompts[i // group] for i in range(len(texts))]
    asked = Asked(of_answers, texts, tokens, group)
    columns: dict[str, Tensor] = {}
    steps: list[Sequence[Step]] | None = None
    if isinstance(task, Rewarded):
        each = task.found(asked, seconds)
        found = [task.total(each, i) for i in range(len(texts))]
        if task.apart:
            columns = {name: numbers(column, group) for name, column in each.items()}
        if task.stepwise is not None and token_ends is not None:
            steps = [steps_of(x, partial(token_ends, i)) for i, x in enumerate(each[task.stepwise])]
    else:
        found = TaskJudge(task).found(asked, (), seconds)
    errors = [x for x in found if isinstance(x, BaseException)]
    failures = list(dict.fromkeys(map(described, errors)))
    has = torch.tensor([not isinstance(x, BaseException) for x in found], device="cpu")
    scored = has.view(-1, group).all(dim=1)
    rewards = numbers(found, group)
    if threshold is not None:
        rewards = (rewards >= threshold).float()
    return Scores(
        rewards,
        scored,
        failures,
        errors[-1] if errors else None,
        columns,
        steps,
    )


def steps_of(found: Found, token_ends: Callable[[Sequence[int]], Sequence[int]]) -> list[Step]:
    """The steps of an answer by tokens; none where it has no reward."""
    if not isinstance(found, Stepwise):
        return []
    ends, rewards = zip(*found.steps, strict=True)
    return list(zip(token_ends(ends), rewards, strict=True))


def numbers(found: Sequence[Found], group: int) -> Tensor:  # [prompts, group]
    flat = [0.0 if isinstance(x, BaseException) else x for x in found]
    return torch.tensor(flat, device="cpu").view(-1, group)


def join_scores(parts: Sequence[Scores], error: BaseException | None) -> Scores:
    """The scores of all prompts from those of some each."""
    rewards, scored, failures, _, columns, steps = zip(*parts, strict=True)
    everything = dict.fromkeys(failure for part in failures for failure in part)
    joined = {name: torch.cat([part[name] for part in columns]) for name in columns[0]}
    all_steps = None if steps[0] is None else [*chain.from_iterable(steps)]
    return Scores(torch.cat(rewards), torch.cat(scored), list(everything), error, joined, all_steps)


def check_any(scores: Scores) -> None:
    """RewardError where no prompt has been scored."""
    if not scores.scored.any():
        prompts, why = len(scores.scored), "; ".join(scores.failures)
        raise RewardError(f"none of {prompts} prompts could be scored: {why}") from scores.error
