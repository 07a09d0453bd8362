"""The hidden states that predict the tokens of a rollout.

Where the policy shares prompts, a prompt is read once for all its answers:

    row:  prompt, answer 1, answer 2, ...
    mask: a token sees its prompt and what its own answer has up to it

with the positions that each answer has behind the prompt. States and gradients are those of the
answers apart, but for rounding, where tokens meet in attention alone; `check_shared` measures that.
"""

from __future__ import annotations

from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor

from logitless.rl.policy import Policy
from logitless.rl.rollout.rollout import Rollout

# Largest difference of a state, as a share of the largest: sums of hundreds in another order.
TOLERANCE = 1e-4


def hidden_states(policy: Policy, rollout: Rollout) -> Tensor:  # [N, H]
    """The body's states that predict the sampled tokens, packed like `rollout.targets`."""
    return (of_shared if policy.share_prompts else of_apart)(policy, rollout)


def of_apart(policy: Policy, rollout: Rollout) -> Tensor:
    """Without the columns that all sequences have padding in."""
    real = rollout.attention.any(dim=0).nonzero()
    first, last = int(real[0]), int(real[-1]) + 1
    states = policy.states(rollout.ids[:, first:last], rollout.attention[:, first:last])
    predict = states[:, rollout.prompt_length - 1 - first : -1]
    return predict[rollout.mask[:, : predict.shape[1]]]


def of_shared(policy: Policy, rollout: Rollout) -> Tensor:
    shared = layout(rollout, policy.pad)
    states = policy.states_seeing(shared.ids, shared.sees, shared.positions)
    return states[shared.row, shared.place]


class Layout(NamedTuple):
    """R prompts with their answers behind them, in rows of at most L tokens."""

    ids: Tensor  # [R, L] int64
    positions: Tensor  # [R, L] int64
    sees: Tensor  # [R, L, L] bool: whether a token (the first L) sees another one
    # where the state is that predicts each target
    row: Tensor  # [N]
    place: Tensor  # [N]


def layout(rollout: Rollout, pad: int) -> Layout:
    """Prompts that are alike are one; of an answer's last token no state is asked."""
    answers_of: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts_of(rollout)):
        answers_of.setdefault(prompt, []).append(i)

    start = rollout.prompt_length
    lengths = rollout.lengths.tolist()
    ids, positions, parts = [], [], []
    places: dict[int, tuple[int, list[int]]] = {}
    for row, (prompt, answers) in enumerate(answers_of.items()):
        first = len(prompt)
        line, spots, part = list(prompt), list(range(first)), [0] * first
        for number, i in enumerate(answers, 1):
            inside = rollout.ids[i, start:][: lengths[i] - 1].tolist()
            places[i] = row, [first - 1, *range(len(line), len(line) + len(inside))]
            line += inside
            spots += range(first, first + len(inside))
            part += [number] * len(inside)
        ids.append(line)
        positions.append(spots)
        parts.append(part)

    device = rollout.ids.device
    part_of = padded(parts, -1, device)
    same = part_of[:, :, None] == part_of[:, None, :]
    of_prompt = part_of[:, None, :] == 0
    ordered = [places[i] for i in range(len(lengths))]
    return Layout(
        ids=padded(ids, pad, device),
        positions=padded(positions, 0, device),
        sees=(same | of_prompt).tril(),
        row=torch.tensor([row for row, place in ordered for _ in place], device=device),
        place=torch.tensor([spot for _, place in ordered for spot in place], device=device),
    )


def prompts_of(rollout: Rollout, index: Tensor | slice = slice(None)) -> list[tuple[int, ...]]:
    """Of each sequence, or of some, the tokens of the prompt."""
    start = rollout.prompt_length
    ids, real = (x[index, :start].tolist() for x in (rollout.ids, rollout.attention))
    return [tuple(compress(*row)) for row in zip(ids, real, strict=True)]


def padded(lines: list[list[int]], value: int, device: torch.device) -> Tensor:
    width = max(map(len, lines))
    return torch.tensor([line + [value] * (width - len(line)) for line in lines], device=device)


@torch.no_grad()
def check_shared(policy: Policy) -> None:
    """ValueError for a body whose states with shared prompts are others: of two prompts with three
    answers each."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(policy.tokenizer), (6, 7), generator=generator, device="cpu")
    # three tokens of a prompt, and two of another one behind a pad
    tokens[:3, :3], tokens[3:, :3] = tokens[0, :3].clone(), tokens[3, :3].clone()
    tokens[3:, 0] = policy.pad
    attention = torch.ones(6, 7, dtype=torch.bool, device="cpu")
    attention[3:, 0] = False
    none = torch.zeros(6, 4, device="cpu")
    rollout = Rollout(tokens, attention, none == 0, none, none).to(policy.device)
    exact = policy.in_dtype("float32")
    apart, shared = of_apart(exact, rollout), of_shared(exact, rollout)
    off = float((shared - apart).abs().max() / apart.abs().max())
    if not off <= TOLERANCE:
        raise ValueError(
            f"recipe key 'model.share_prompts' must be false for {type(policy.model).__name__}: "
            f"its states are off by {off:.0e} of the largest where answers share their prompt"
        )
