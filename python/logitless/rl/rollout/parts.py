"""Sequences in parts that go through the body one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from logitless.rl.policy import Policy
from logitless.rl.rollout.rollout import Rollout
from logitless.rl.rollout.states import prompts_of

# The tokens of a prompt, and how many its answer has.
Sequence: TypeAlias = tuple[tuple[int, ...], int]


class Cut(NamedTuple):
    """Into so many parts; or into parts of at most so many tokens through the body, padding
    included, where `tokens` is not 0."""

    parts: int = 1
    tokens: int = 0


def in_parts(
    policy: Policy,
    rollout: Rollout,
    index: Tensor,  # the sequences to cut
    cut: Cut,
) -> list[Tensor]:
    """These sequences, in parts of which some may be empty. A sequence that is too long for a part
    has one of its own."""
    order = alike(policy, rollout, index)
    if not cut.tokens:
        return list(order.tensor_split(cut.parts))
    kind = Shared if policy.share_prompts else Apart
    return list(order.split(sizes(kind, sequences_of(rollout, order), cut.tokens)))


def of_parts(
    policy: Policy,
    rollout: Rollout,
    cut: Cut,
    # from sequences to numbers of their tokens, [N] each
    work: Callable[[Rollout], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """work(rollout), a part after the other."""
    everything = torch.arange(len(rollout.mask), device=rollout.mask.device)
    parts = [part for part in in_parts(policy, rollout, everything, cut) if len(part)]
    found = [work(rollout.sequences(part)) for part in parts]
    places = rollout.places(torch.cat(parts))
    joined = {name: torch.cat([numbers[name] for numbers in found]) for name in found[0]}
    return {name: torch.empty_like(x).index_copy_(0, places, x) for name, x in joined.items()}


def alike(policy: Policy, rollout: Rollout, index: Tensor) -> Tensor:
    """These sequences in an order in which neighbours bring the body little padding together:
    answers as long as each other; where it reads a prompt once, the answers to it together, and
    rows as long as each other."""
    if not policy.share_prompts:
        return index[rollout.lengths[index].argsort(stable=True)]
    index = index.sort().values
    sequences, rows = sequences_of(rollout, index), Shared()
    for sequence in sequences:
        rows.add(sequence)
    places = {prompt: place for place, prompt in enumerate(rows.lengths)}
    # stable: answers to a prompt stay in their order
    order = sorted(
        range(len(sequences)),
        key=lambda i: (rows.lengths[sequences[i][0]], places[sequences[i][0]]),
    )
    return index[order]


def sequences_of(rollout: Rollout, index: Tensor) -> list[Sequence]:
    return [*zip(prompts_of(rollout, index), rollout.lengths[index].tolist(), strict=True)]


class Apart:
    """What goes through the body of sequences that have a row each (states.of_apart)."""

    def __init__(self) -> None:
        self.rows = self.prompt = self.answer = 0

    def add(self, sequence: Sequence) -> int:
        """The tokens with one sequence more."""
        prompt, answer = sequence
        self.rows += 1
        self.prompt, self.answer = max(self.prompt, len(prompt)), max(self.answer, answer)
        return self.rows * (self.prompt + self.answer)


class Shared:
    """The same of answers in the row of their prompt (states.layout)."""

    def __init__(self) -> None:
        self.lengths: dict[tuple[int, ...], int] = {}
        self.longest = 0

    def add(self, sequence: Sequence) -> int:
        prompt, answer = sequence
        self.lengths[prompt] = self.lengths.get(prompt, len(prompt)) + answer - 1
        self.longest = max(self.longest, self.lengths[prompt])
        return len(self.lengths) * self.longest


def sizes(kind: type[Apart | Shared], sequences: Iterable[Sequence], most: int) -> list[int]:
    """How many neighbours are in each part: as many as go through the body with `most` tokens."""
    found: list[int] = []
    part = kind()
    for sequence in sequences:
        if not found or part.add(sequence) > most:
            part = kind()
            part.add(sequence)
            found.append(0)
        found[-1] += 1
    return found
