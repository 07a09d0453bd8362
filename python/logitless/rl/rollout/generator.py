"""Sampling answers: the body's loop with its cache, and a head that draws tokens without logits.

Each prompt is read once and its cache repeated for the group; the head sees only the rows of
unfinished answers, and the body half as many rows when half of them have ended. A draw depends on
(seed, step, sequence, position) alone, not on the other rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.policy import Policy, keep_rows
from logitless.rl.rollout.rollout import Rollout
from logitless.rl.tracking.stopwatch import Stopwatch


# A body that casts its weights does so once for all tokens: what an inner autocast has cast, on any
# device, is kept until the outermost ends.
@torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
@torch.no_grad()
def sample(
    policy: Policy,
    prompts: list[list[int]],  # token ids of P prompts
    *,
    group: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int,
    step: int,
    first: int = 0,
    clock: Stopwatch,
) -> Rollout:
    """`group` answers to each prompt (sequence i answers prompt i // group), each ended by an end
    token or the limit; `first`: the number of the first one among the step's, of which these may be
    some. top_k=1 is greedy. Under top_k, top_p or min_p log-probs and entropies are
    within the tokens that are left, which `kept` names.
    """
    policy.check_length(prompts, max_new_tokens)
    B, T, device = len(prompts) * group, max_new_tokens, policy.device
    ids, attention = left_pad(prompts, policy.pad, device)
    tokens = torch.full((B, T), policy.pad, device=device)
    mask = torch.zeros(B, T, dtype=torch.bool, device=device)
    logp, entropy = torch.zeros(2, B, T, device=device)

    cache = policy.new_cache()
    with clock("rollout body"):
        hidden = policy.states(ids, attention, cache)[:, -1]
    keep_rows(cache, torch.arange(B, device=device) // group)
    hidden, ids, attention = (x.repeat_interleave(group, dim=0) for x in (hidden, ids, attention))

    truncated = (top_k, top_p, min_p) != (None, None, None)
    sets: list[tuple[Tensor, ll.SamplingMask]] = []
    live = torch.ones(B, dtype=torch.bool, device=device)
    ends = torch.tensor(policy.ends, device=device)
    # the sequences that the cache has, and the body still goes on with
    held = torch.arange(B, device=device)
    for t in range(T):
        rows = live.nonzero()[:, 0]
        hidden = hidden[live[held]]
        with clock("rollout head"):
            drawn = ll.linear_sample(
                hidden,
                policy.weight,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                seed=seed,
                step=step,
                row_ids=(first + rows) * T + t,
                **policy.head_options,
            )
            stats: Any = drawn
            if truncated:
                sets.append((rows, drawn.sampling_mask))
                # the entropy within the set, which training compares with its own
                stats = ll.linear_token_stats(
                    hidden,
                    policy.weight,
                    drawn.token,
                    temperature=temperature,
                    sampling_mask=drawn.sampling_mask,
                    **policy.head_options,
                )
        tokens[rows, t] = drawn.token
        logp[rows, t], entropy[rows, t] = stats.logp, stats.entropy
        mask[rows, t] = True
        live[rows] = ~torch.isin(drawn.token, ends)
        attention = torch.cat([attention, mask[:, t : t + 1]], dim=1)
        if t + 1 == T or not live.any():
            break
        if 2 * int(live.sum()) <= len(held):
            keep_rows(cache, live[held].nonzero()[:, 0])
            held = held[live[held]]
        with clock("rollout body"):
            hidden = policy.states(tokens[held, t : t + 1], attention[held], cache)[:, -1]

    # The longest answer sets the width: columns that no sequence wrote are dropped.
    T = t + 1
    return Rollout(
        ids=torch.cat([ids, tokens[:, :T]], dim=1),
        attention=attention,
        mask=mask[:, :T],
        logp=logp[:, :T],
        entropy=entropy[:, :T],
        kept=by_sequence(sets) if truncated else None,
    )


def by_sequence(sets: list[tuple[Tensor, ll.SamplingMask]]) -> ll.SamplingMask:
    """The sets of all tokens, sequence after sequence; sets: at each place the sequences that had a
    token there, ascending, and the sets of these."""
    lists = [ids for _, mask in sets for ids in mask.lists()]
    # stable: the places of a sequence stay in their order
    order = torch.cat([rows for rows, _ in sets]).argsort(stable=True)
    return ll.SamplingMask.from_lists([lists[i] for i in order.tolist()])


def left_pad(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + row for row in rows]
    attention = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(attention, device=device)
