"""One call of a reward: its number, or why there is none, within a time."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from threading import Thread
from types import CodeType, TracebackType
from typing import Any, TypeAlias

# A reward, or why an answer has none.
Found: TypeAlias = float | BaseException
# From what a function has returned for an answer, and the answer's text, to its reward.
Read: TypeAlias = Callable[[Any, str], float]

# Of an error, the attribute that says where it comes from, where its traceback does not.
PLACE = "place"


class RewardTimeout(TimeoutError):
    """A reward has not come in its time; its traceback ends where the call was then."""


def number(returned: Any, text: str) -> float:
    """What a function has returned for an answer of this text, as its reward."""
    if isinstance(returned, (str, bytes)):
        raise TypeError(f"the reward must be a number, got the text {returned!r}")
    reward = float(returned)
    if not math.isfinite(reward):
        raise ValueError(f"the reward must be finite, got {reward}")
    return reward


def attempt(reward_of: Callable[[], float]) -> Found:
    """The reward of an answer, or why it has none."""
    try:
        return reward_of()
    # sys.exit in a reward is a failure of the reward
    except (Exception, SystemExit) as error:
        return error


def one_by_one(
    calls: Sequence[Callable[[], Any]],
    texts: Sequence[str],
    group: int,
    read: Read = number,
    seconds: float | None = None,
) -> list[Found]:
    """The rewards of answers, so many (`group`) to a prompt. A prompt with an answer that took too
    long is lost: the answers after it are not asked."""

    def ask(call: Callable[[], Any], text: str) -> float:
        return read(within(seconds, call), text)

    found: list[Found] = []
    for i, (call, text) in enumerate(zip(calls, texts, strict=True)):
        of_prompt = found[i - i % group :]
        late = next((x for x in of_prompt if isinstance(x, RewardTimeout)), None)
        found.append(attempt(partial(ask, call, text)) if late is None else late)
    return found


def at_once(
    rewards_of: Callable[[], Sequence[Any]],
    texts: Sequence[str],
    read: Read = number,
    seconds: float | None = None,
) -> list[Found]:
    """The rewards of these answers by one call, whose error is that of every answer."""
    count = len(texts)
    try:
        rewards = list(within(seconds, rewards_of))
        if len(rewards) != count:
            raise ValueError(f"the rewards must be {count}, one an answer, got {len(rewards)}")
    except (Exception, SystemExit) as error:
        return [error] * count
    pairs = zip(rewards, texts, strict=True)
    return [attempt(partial(read, reward, text)) for reward, text in pairs]


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


def placed(found: list[Found], function: Callable[..., Any]) -> list[Found]:
    """Errors outside of the function, of what it returned or of a call that does not fit it, are at
    its first line; those inside have a place of their own."""
    called = function if hasattr(function, "__code__") else type(function).__call__
    code: CodeType | None = getattr(called, "__code__", None)
    for error in found:
        if code is None or not isinstance(error, BaseException) or isinstance(error, RewardTimeout):
            continue
        frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        if code not in frames and not hasattr(error, PLACE):
            setattr(error, PLACE, f"{code.co_filename}:{code.co_firstlineno}")
    return found


def described(error: BaseException) -> str:
    """Type, message, and the line of the innermost call; of what a function has returned, and of
    a call that does not fit it, the function's own line."""
    place = getattr(error, PLACE, None)
    if place is None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}:{frame.lineno}"
    return f"{type(error).__name__}: {error} ({place})"
