"""Answers that a server samples, seen as a rollout of the policy.

Tokens and `rollout_logp` are the server's. `logp` and `entropy` are the policy's own, of a forward
here: a server computes in another dtype and with other kernels, and a loss compares with them.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.policy import Policy
from logitless.rl.rollout.generator import left_pad
from logitless.rl.rollout.rollout import Rollout
from logitless.rl.rollout.server import Answer, Server
from logitless.rl.rollout.states import hidden_states
from logitless.rl.tracking.stopwatch import Stopwatch

# Requests that are under way at once: the server has its own queue.
AT_ONCE = 64


def sample_remotely(
    server: Server,
    policy: Policy,
    prompts: list[list[int]],
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
    """As `sample`, whose arguments these are. top_k=1 is greedy, without `kept`; top_p and min_p
    need a top_k, since the server names no more tokens than that.

    The server must have the policy's weights (`hand_over`). What it draws depends on the seed as
    far as it keeps to it: vLLM's batches change a sum.
    """
    policy.check_length(prompts, max_new_tokens)
    given = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    greedy = top_k == 1
    truncation = {} if greedy else {name: x for name, x in given.items() if x is not None}
    never = [] if policy.padding is None else policy.padding.isinf().nonzero()[:, 0].tolist()

    def answers(i: int) -> list[Answer]:
        return server.answers(
            prompts[i],
            group,
            max_tokens=max_new_tokens,
            temperature=0.0 if greedy else temperature,
            seed=random.Random(f"{seed} {step} {first + i * group}").getrandbits(32),
            ends=policy.ends,
            never=never,
            truncation=truncation,
        )

    with clock("rollout server"), ThreadPoolExecutor(AT_ONCE) as pool:
        found = [answer for some in pool.map(answers, range(len(prompts))) for answer in some]
    rollout = as_rollout(policy, prompts, found, group)
    with clock("rollout body"):
        parts = [
            stats_of(policy, rollout.sequences(rows), temperature)
            for rows in torch.arange(len(found), device=policy.device).split(group)
        ]
    logp, entropy = (torch.cat(numbers) for numbers in zip(*parts, strict=True))
    none = torch.zeros_like(rollout.logp)
    return replace(
        rollout,
        logp=none.masked_scatter(rollout.mask, logp),
        entropy=none.masked_scatter(rollout.mask, entropy),
    )


def as_rollout(
    policy: Policy, prompts: list[list[int]], answers: list[Answer], group: int
) -> Rollout:
    """Without the policy's own log-probs and entropies."""
    device, width = policy.device, max(len(answer.ids) for answer in answers)
    of_each = [prompt for prompt in prompts for _ in range(group)]
    ids, attention = left_pad(of_each, policy.pad, device)
    tokens = torch.full((len(answers), width), policy.pad, device=device)
    mask = torch.zeros(len(answers), width, dtype=torch.bool, device=device)
    theirs = torch.zeros(len(answers), width, device=device)
    for row, answer in enumerate(answers):
        n = len(answer.ids)
        tokens[row, :n] = torch.tensor(answer.ids, device=device)
        theirs[row, :n] = torch.tensor(answer.logp, device=device)
        mask[row, :n] = True
    sets = [left for answer in answers for left in answer.kept or ()]
    return Rollout(
        ids=torch.cat([ids, tokens], dim=1),
        attention=torch.cat([attention, mask], dim=1),
        mask=mask,
        logp=torch.zeros_like(theirs),
        entropy=torch.zeros_like(theirs),
        kept=ll.SamplingMask.from_lists(sets) if sets else None,
        rollout_logp=theirs,
    )


@torch.no_grad()
def stats_of(policy: Policy, rollout: Rollout, temperature: float) -> tuple[Tensor, Tensor]:
    """(log-prob, entropy) [N] of the sampled tokens, within what was left to draw from."""
    stats = ll.linear_token_stats(
        hidden_states(policy, rollout),
        policy.weight,
        rollout.targets,
        temperature=temperature,
        sampling_mask=rollout.kept,
        **policy.head_options,
    )
    return stats.logp, stats.entropy
