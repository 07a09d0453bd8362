"""One call of a reward: its number, or why there is none, within a time."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Sequence
from threading import Thread
from types import TracebackType
from typing import Any, TypeAlias

# A reward, or why an answer has none.
Found: TypeAlias = float | BaseException


class RewardTimeout(TimeoutError):
    """A reward has not come in its time; its traceback ends where the call was then."""


def attempt(reward_of: Callable[[], Any], seconds: float | None = None) -> Found:
    """The reward of an answer, or why it has none."""
    try:
        reward = float(within(seconds, reward_of))
        if not math.isfinite(reward):
            raise ValueError(f"the reward must be finite, got {reward}")
    # sys.exit in a reward is a failure of the reward
    except (Exception, SystemExit) as error:
        return error
    return reward


def one_by_one(
    calls: Sequence[Callable[[], Any]], group: int, seconds: float | None = None
) -> list[Found]:
    """The rewards of answers, so many (`group`) to a prompt. A prompt with an answer that took too
    long is lost: the answers after it are not asked."""
    found: list[Found] = []
    for i, call in enumerate(calls):
        of_prompt = found[i - i % group :]
        late = next((x for x in of_prompt if isinstance(x, RewardTimeout)), None)
        found.append(attempt(call, seconds) if late is None else late)
    return found


def at_once(
    rewards_of: Callable[[], Sequence[Any]], count: int, seconds: float | None = None
) -> list[Found]:
    """The rewards of so many answers by one call, whose error is that of every answer."""
    try:
        rewards = list(within(seconds, rewards_of))
        if len(rewards) != count:
            raise ValueError(f"the rewards must be {count}, one an answer, got {len(rewards)}")
    except (Exception, SystemExit) as error:
        return [error] * count
    return [attempt(lambda reward=reward: reward) for reward in rewards]  # type: ignore[misc]


def within(seconds: float | None, work: Callable[[], Any]) -> Any:
    """work(), here; or with a limit in a thread of its own, and RewardTimeout where it is not done
    by then.

    Nothing can stop a thread: one that is late runs on beside the training, until it ends or the
    process does, and what it gives is lost. A signal (SIGALRM) would end the call, but the process
    has one such timer, which math-verify and others set themselves, and only in the main thread.
    """
    if seconds is None:
        return work()
    given: list[Any] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            given.append(work())
        # whatever it is, the caller raises it
        except BaseException as error:
            raised.append(error)

    # one that is late must not keep the process from ending
    thread = Thread(target=run, name="reward", daemon=True)
    thread.start()
    thread.join(seconds)
    if given:
        return given[0]
    if raised:
        raise raised[0]
    error = RewardTimeout(f"no reward within {seconds:g} s")
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is not None:
        place = TracebackType(None, frame, frame.f_lasti, frame.f_lineno)
        error = error.with_traceback(place)
    raise error


def described(error: BaseException) -> str:
    """Type, message, and the line of the innermost call."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
