"""Did entropy change as the gradient said it would?

    predicted = <grad_theta mean H, theta_after - theta_before>,   measured = mean H after - before

both on the rows of some answers of the rollout: the first-order change, of the whole model and not
of free logits. Each rank has the rows of its own sequences, and its share of the two sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.engine import LocalEngine, own_parts, ranks
from logitless.rl.policy import Policy
from logitless.rl.rollout import Cut, Rollout, hidden_states
from logitless.rl.tracking.stopwatch import Stopwatch

# Numbers of a tensor that are cast to fp64 at once: 8 MB. The C library gives larger buffers back
# to the system each time: with 32 MB the product of 19.6 million weights takes 139 ms of a core,
# with 8 MB 15 ms.
PIECE = 1 << 20


T = TypeVar("T")


class EntropyChange(NamedTuple):
    predicted: float
    measured: float
    # of `measured`, for the change on all answers of the rollout
    standard_error: float


class Share(NamedTuple):
    """What a rank knows of some of the answers."""

    # of the mean entropy over the tokens of all ranks, that of these
    loss: Tensor
    # the sum over the tokens of each answer, fp64
    entropies: list[float]


class EntropyProbe:
    """Made before an update, asked after it. Costs two forwards and a backward of a `share` of the
    answers, a part after the other, and a gradient's memory. Both are collective.
    """

    def __init__(
        self,
        engine: LocalEngine,
        rollout: Rollout,
        temperature: float,
        cut: Cut,  # of all answers
        share: float = 1.0,
    ) -> None:
        self._engine, self._temperature, self._answers = engine, temperature, len(rollout.mask)
        index = spaced(self._answers, share, rollout.mask.device)
        self._tokens = int(rollout.lengths[index].sum())
        cut = cut._replace(parts=math.ceil(cut.parts * len(index) / self._answers))
        own = own_parts(engine.policy, rollout, index, cut)
        self._parts = [rollout.sequences(part) for part in own]
        own_lengths = [n for part in self._parts for n in part.lengths.tolist()]
        self._lengths = of_all_ranks(lambda: own_lengths)
        self._entropies = of_all_ranks(self._entropies_and_gradients)
        self._gradients = engine.take_gradients()
        self._along_before = self._along_gradient()

    @torch.no_grad()
    def change(self) -> EntropyChange:
        moved = self._along_gradient() - self._along_before
        with self._engine.whole() as policy:
            now = of_all_ranks(partial(self._entropies_under, policy))
        changes = [after - before for after, before in zip(now, self._entropies, strict=True)]
        return EntropyChange(
            predicted=sum(ranks.each(lambda: moved)),
            measured=math.fsum(changes) / self._tokens,
            standard_error=standard_error(changes, self._lengths, self._answers),
        )

    @torch.no_grad()
    def _along_gradient(self) -> float:
        """<gradient, this rank's weights>, in fp64: what an update adds to it is a difference of
        two, of which no weight has to be kept."""
        total = 0.0
        for g, p in zip(self._gradients, self._engine.own_parameters(), strict=True):
            pieces = zip(g.reshape(-1).split(PIECE), p.reshape(-1).split(PIECE), strict=True)
            total += float(sum(a.double() @ b.double() for a, b in pieces))
        return total

    def _entropies_and_gradients(self) -> list[float]:
        found: list[float] = []
        for part in self._parts:
            if not len(part.mask):
                self._engine.idle()
                continue
            found += self._engine.forward_backward(
                part, partial(self._share, part), Stopwatch()
            ).entropies
        return found

    def _entropies_under(self, policy: Policy) -> list[float]:
        return [
            entropy
            for part in self._parts
            if len(part.mask)
            for entropy in self._share(part, hidden_states(policy, part), policy).entropies
        ]

    def _share(self, part: Rollout, states: Tensor, policy: Policy) -> Share:
        stats: Any = ll.linear_token_stats(
            states,
            policy.weight,
            part.targets,
            temperature=self._temperature,
            **policy.head_options,
        )
        # What is measured is a difference of two of them.
        entropy: Tensor = stats.entropy.double()
        none = torch.zeros_like(part.mask, dtype=torch.float64)
        by_answer = none.masked_scatter(part.mask, entropy.detach()).sum(dim=1)
        return Share(entropy.sum() / self._tokens, by_answer.tolist())


def spaced(answers: int, share: float, device: torch.device | str) -> Tensor:
    """The places of that share of the answers, at least of two, in even steps: some of each
    prompt's where there are enough. Answers to a prompt are draws alike, so that any will do."""
    count = min(answers, max(2, math.ceil(answers * share)))
    return torch.arange(count, device=device) * answers // count


def standard_error(changes: Sequence[float], lengths: Sequence[int], answers: int) -> float:
    """Of sum(changes) / sum(lengths), the change per token of a sample of so many answers: that of
    a ratio, between answers. 0 where all answers are in the sample; larger than it is where the
    prompts differ, of which a sample in even steps has a share each."""
    count, tokens = len(changes), sum(lengths)
    if count == answers:
        return 0.0
    mean = math.fsum(changes) / tokens
    squares = math.fsum((x - mean * n) ** 2 for x, n in zip(changes, lengths, strict=True))
    return math.sqrt(squares * count / (count - 1) * (1 - count / answers)) / tokens


def of_all_ranks(work: Callable[[], list[T]]) -> list[T]:
    """The lists of all ranks as one. Collective."""
    return [*chain.from_iterable(ranks.each(work))]
