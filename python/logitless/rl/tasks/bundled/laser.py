"""Rewards for right answers that are short: LASER and LASER-D, arXiv:2505.15612."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

from logitless.rl.tasks.bundled.option_checks import at_least_1, finite, one_of
from logitless.rl.tasks.following import Group

T = TypeVar("T")

DIFFICULTIES = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Laser:
    """alpha * (right and answer_tokens <= target), where an answer is right if its reward in the
    one column of `of` is at least `right`; that column is the other term of the paper's reward.

    LASER, the step reward of arXiv:2505.15612, whose alpha is 0.5.
    """

    target: int
    alpha: float = 0.5
    right: float = 0.99

    def __post_init__(self) -> None:
        at_least_1("target", self.target)
        finite("alpha", self.alpha)
        finite("right", self.right)

    def __call__(
        self, prompt: Any, completion: str, *, of: Sequence[float], answer_tokens: int, **row: Any
    ) -> float:
        return self.alpha * (only(of) >= self.right and answer_tokens <= self.target)


@dataclass
class LaserD:
    """LASER with a target for each difficulty, which follows the policy: LASER-D of
    arXiv:2505.15612, by the authors' code (github.com/hkust-nlp/Laser).

    A prompt is easy where at least 2/3 of its K answers are right, medium where at least 1/3 are,
    and else hard; an answer's reward is `Laser`'s with the target of its prompt's difficulty:

        expected = {easy: max(2 * K // 3, 1), medium: max(K // 3, 1), hard: 1}
        target = min(length for length in lengths if share(length) * expected >= 1), else limit

    share(length) is the share of answers with at most `length` tokens among those to prompts of a
    difficulty: of all answers, as in the authors' code (coverage="answers"), or of the right ones
    (coverage="right"). lengths are least, least + interval, ..., limit; the authors have 4096, 1024
    and 16384 for one of their models, and take their longest answer where no length will do.

    The authors sample answers to 500 prompts of their own every 20 steps. Here the answers are
    those of the training steps since the last estimate, all that have rewards, which cost nothing:
    they are of random training prompts too, and a task need not have a set of prompts to monitor.
    Targets are estimated after the first step, and after every `every` steps. Until then they are
    `limit`, as a rule `rollout.max_new_tokens`, which every right answer keeps.
    """

    limit: int
    least: int = 1
    interval: int = 1
    every: int = 20
    alpha: float = 0.5
    right: float = 0.99
    coverage: str = "answers"

    targets: dict[str, int] = field(init=False)
    _steps: int = field(init=False, default=0)
    # answers to a prompt
    _group: int = field(init=False, default=0)
    # of each difficulty, answers since the last estimate: all, and those that each length is the
    # first to hold
    _answers: dict[str, int] = field(init=False)
    _first: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("limit", "least", "interval", "every"):
            at_least_1(name, getattr(self, name))
        if self.least > self.limit:
            raise ValueError(f"least must be at most limit = {self.limit}, got {self.least}")
        finite("alpha", self.alpha)
        finite("right", self.right)
        one_of("coverage", self.coverage, ("answers", "right"))
        self._lengths: list[int] = [*range(self.least, self.limit, self.interval), self.limit]
        self.targets = dict.fromkeys(DIFFICULTIES, self.limit)
        self._forget()

    def __call__(
        self,
        prompt: Any,
        completions: Sequence[str],
        *,
        of: Sequence[Sequence[float]],
        answer_tokens: Sequence[int],
        **row: Any,
    ) -> list[float]:
        right = self._right(of)
        target = self.targets[difficulty(right)]
        return [
            self.alpha * (is_right and n <= target)
            for is_right, n in zip(right, answer_tokens, strict=True)
        ]

    def after_step(self, groups: Sequence[Group]) -> dict[str, float]:
        """The targets that the step's answers were rewarded by."""
        gone_by = {f"target_{name}": float(target) for name, target in self.targets.items()}
        for group in groups:
            self._count(self._right(group.of), group.answer_tokens)
        self._steps += 1
        if self._steps == 1 or self._steps % self.every == 0:
            self.targets = {name: self._target(name) for name in DIFFICULTIES}
            self._forget()
        return gone_by

    def state_dict(self) -> dict[str, Any]:
        return {
            "targets": self.targets, "steps": self._steps, "group": self._group,
            "answers": self._answers, "first": self._first,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        expected = len(self._lengths)
        if any(len(counts) != expected for counts in state["first"].values()):
            raise ValueError(f"a state must be of {expected} lengths, got {state['first']}")
        self.targets, self._steps, self._group = state["targets"], state["steps"], state["group"]
        self._answers, self._first = state["answers"], state["first"]

    def _right(self, of: Sequence[Sequence[float]]) -> list[bool]:
        return [reward >= self.right for reward in only(of)]

    def _count(self, right: Sequence[bool], answer_tokens: Sequence[int]) -> None:
        name, self._group = difficulty(right), len(right)
        for is_right, n in zip(right, answer_tokens, strict=True):
            if is_right or self.coverage == "answers":
                self._answers[name] += 1
                if n <= self.limit:
                    self._first[name][bisect_left(self._lengths, n)] += 1

    def _target(self, name: str) -> int:
        many = {"easy": 2 * self._group // 3, "medium": self._group // 3, "hard": 1}
        expected, counts = max(many[name], 1), accumulate(self._first[name])
        for length, within in zip(self._lengths, counts, strict=True):
            if within and within * expected >= self._answers[name]:
                return length
        return self.limit

    def _forget(self) -> None:
        self._answers = dict.fromkeys(DIFFICULTIES, 0)
        self._first = {name: [0] * len(self._lengths) for name in DIFFICULTIES}


def difficulty(right: Sequence[bool]) -> str:
    """Of a prompt, by its answers."""
    if 3 * sum(right) >= 2 * len(right):
        return "easy"
    return "medium" if 3 * sum(right) >= len(right) else "hard"


def only(of: Sequence[T]) -> T:
    """The one column. ValueError where `of` has another number of columns."""
    if len(of) != 1:
        raise ValueError(f"of must name one reward, that of a right answer, got {len(of)}")
    return of[0]
