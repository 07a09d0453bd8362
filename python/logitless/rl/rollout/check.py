"""Whether a body's states in a rollout are those of a whole sequence, measured on a few tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from logitless.rl.policy import Policy, keep_rows

# Largest difference of a state, as a share of the largest: sums of hundreds in another order.
TOLERANCE = 1e-4
# Two prompts of these many tokens have two answers each, of so many.
LENGTHS, ANSWER = (5, 3), 4
WIDTH = max(LENGTHS)
# The sequences that go on after two tokens, in another order.
STAY = (3, 0)


@torch.no_grad()
def check_cache(policy: Policy) -> None:
    """ValueError for a model whose states are others with a cache, of which sequences leave, or
    with padding on the left: a rollout, or training, would go wrong in silence."""
    if policy.positions is not None and policy.positions < WIDTH + ANSWER:
        raise ValueError(
            f"a model must have at least {WIDTH + ANSWER} positions, got {policy.positions}"
        )
    exact = policy.in_dtype("float32")
    ids, attention = sequences(len(policy.tokenizer), policy.pad, policy.device)
    # as the model itself is called: it may count positions in another way
    alone = [
        policy.head.hidden(policy.model, input_ids=row[real][None], use_cache=False)
        for row, real in zip(ids, attention, strict=True)
    ]
    wanted = torch.cat([states[:, -ANSWER - 1 :] for states in alone])
    try:
        padded = exact.states(ids, attention)[:, -ANSWER - 1 :]
        found, there = with_cache(exact, ids, attention)
    # whatever a model makes of a cache that is not as it wants it
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{_name(policy)} cannot go on with a cache: {why}") from error
    for what, difference in {
        "padding on the left": padded - wanted,
        "a cache": (found - wanted)[there],
    }.items():
        off = float(difference.abs().max() / wanted.abs().max())
        if not off <= TOLERANCE:
            raise ValueError(
                f"{_name(policy)} cannot be trained: with {what} its states are off by {off:.0e} "
                "of the largest"
            )


def sequences(vocab: int, pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, attention) [4, WIDTH + ANSWER]: each prompt twice, padded on the left."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab, (4, WIDTH + ANSWER), generator=generator, device="cpu")
    ids[1::2, :WIDTH] = ids[::2, :WIDTH].clone()
    attention = torch.ones_like(ids, dtype=torch.bool)
    for prompt, length in enumerate(LENGTHS):
        attention[2 * prompt : 2 * prompt + 2, : WIDTH - length] = False
    return ids.where(attention, torch.tensor(pad, device="cpu")).to(device), attention.to(device)


def with_cache(policy: Policy, ids: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
    """States [4, ANSWER + 1, H] from the last token of the prompt on, as a rollout makes them, and
    where they are: sequences leave."""
    device, cache = ids.device, policy.new_cache()
    prompts = policy.states(ids[::2, :WIDTH], attention[::2, :WIDTH], cache)
    held = torch.arange(4, device=device)
    keep_rows(cache, held // 2)
    states = prompts[:, -1:].repeat_interleave(2, dim=0).repeat(1, ANSWER + 1, 1)
    there = torch.ones(states.shape[:2], dtype=torch.bool, device=device)
    for t in range(ANSWER):
        if t == 2:
            held = torch.tensor(STAY, device=device)
            keep_rows(cache, held)
        token = WIDTH + t
        now = policy.states(ids[held, token][:, None], attention[held, : token + 1], cache)
        states[held, t + 1] = now[:, -1]
        there[:, t + 1] = torch.isin(torch.arange(4, device=device), held)
    return states, there


def _name(policy: Policy) -> str:
    return f"a model of class {type(policy.model).__name__}"
