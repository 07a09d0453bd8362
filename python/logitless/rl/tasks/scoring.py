"""The rewards of a step's answers, as a task returns them."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.rl.tasks.base import Prompt, Task, TaskOfBatches


class RewardError(RuntimeError):
    """No answer of a step could be scored; the cause is the task's last error."""


class Scores(NamedTuple):
    rewards: Tensor  # [prompts, group] float32; 0 where there is none
    scored: Tensor  # [prompts] bool: every answer of the prompt has a reward
    failures: list[str]  # what went wrong, with file and line; each once
    # the last error; of the answers that this process has scored
    error: BaseException | None = None


def score(
    task: Task, prompts: Sequence[Prompt], texts: Sequence[str], threshold: float | None = None
) -> Scores:
    """The reward of every answer; texts: [prompts * group], the answers of a prompt together.

    Rewards stay as the task returns them; with a threshold they become 1.0 from there on and 0.0
    below. An error, NaN or an infinity has no reward: advantages compare the answers of a prompt,
    so all of its group go without.
    """
    group = len(texts) // len(prompts)
    of_answers = [prompts[i // group] for i in range(len(texts))]
    if isinstance(task, TaskOfBatches):
        found = together(task, of_answers, texts)
    else:
        found = [
            attempt(partial(task.reward, *each)) for each in zip(of_answers, texts, strict=True)
        ]
    errors = [x for x in found if isinstance(x, BaseException)]
    failures = list(dict.fromkeys(map(described, errors)))
    has = torch.tensor([not isinstance(x, BaseException) for x in found], device="cpu")
    scored = has.view(-1, group).all(dim=1)
    rewards = torch.tensor(
        [0.0 if isinstance(x, BaseException) else x for x in found], device="cpu"
    )
    if threshold is not None:
        rewards = (rewards >= threshold).float()
    return Scores(rewards.view(-1, group), scored, failures, errors[-1] if errors else None)


def join_scores(parts: Sequence[Scores], error: BaseException | None) -> Scores:
    """The scores of all prompts from those of some each."""
    rewards, scored, failures, _ = zip(*parts, strict=True)
    everything = dict.fromkeys(failure for part in failures for failure in part)
    return Scores(torch.cat(rewards), torch.cat(scored), list(everything), error)


def check_any(scores: Scores) -> None:
    """RewardError where no prompt has been scored."""
    if not scores.scored.any():
        prompts, why = len(scores.scored), "; ".join(scores.failures)
        raise RewardError(f"none of {prompts} prompts could be scored: {why}") from scores.error


def together(
    task: TaskOfBatches, prompts: Sequence[Prompt], texts: Sequence[str]
) -> list[float | BaseException]:
    """An error of the one call is that of every answer."""
    try:
        rewards = list(task.rewards(prompts, texts))
        if len(rewards) != len(texts):
            raise ValueError(f"the rewards must be {len(texts)}, one an answer, got {len(rewards)}")
    except (Exception, SystemExit) as error:
        return [error] * len(texts)
    return [attempt(lambda reward=reward: reward) for reward in rewards]  # type: ignore[misc]


def attempt(reward_of: Callable[[], Any]) -> float | BaseException:
    """The reward of an answer, or why it has none."""
    try:
        reward = float(reward_of())
        if not math.isfinite(reward):
            raise ValueError(f"the reward must be finite, got {reward}")
    # sys.exit in a reward is a failure of the reward
    except (Exception, SystemExit) as error:
        return error
    return reward


def described(error: BaseException) -> str:
    """Type, message, and the line of the innermost call."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
