"""A head whose rows hold nearly all of their probability in a few entries, as an RL policy's do.

92% of the rows hold all but 1e-3 in their 64 largest entries and 98% all but 1e-2; the rest are
spread out. Each row points at a dozen tokens drawn from all of the vocabulary, which is harsher
than text: every row's entries are others, and no row of weight is found in a cache.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks.cases.inputs import (
    CHUNK,
    HeadInputs,
    choose_targets,
    generator,
    logp_of,
    normal,
    token_inputs,
    unclipped,
)
from benchmarks.harness.case import Case

KEPT = 64
# tail_mass -> share of the rows that hold all but so much in KEPT entries
SHARES = {1e-3: 0.92, 1e-2: 0.98}
TOKENS = 12


@functools.lru_cache(maxsize=1)
def peaked_head(case: Case) -> HeadInputs:
    """Hidden states scaled row by row until the mass outside the 64 largest entries is as drawn."""
    g = generator(case)
    n, width, dtype = case.rows, case.width, case.torch_dtype
    weight = torch.randn(case.vocab, width, generator=g, device=case.device)
    weight = weight.mul_(width**-0.5).to(dtype)
    tops = torch.randint(case.vocab, (n, TOKENS), generator=g, device=case.device)
    heights = torch.linspace(1.0, 0.55, TOKENS, device=case.device)
    heights = heights - 0.06 * torch.rand(n, TOKENS, generator=g, device=case.device)
    hidden = torch.empty(n, width, dtype=dtype, device=case.device)
    tails = drawn_tails(n, g)
    parts = []
    for rows in torch.arange(n).split(CHUNK):
        part = (weight[tops[rows]].float() * heights[rows, :, None]).sum(1)
        hidden[rows] = (part * scales(part.to(dtype) @ weight.t(), tails[rows])).to(dtype)
        parts.append(hidden[rows] @ weight.t())
    logits = torch.cat(parts)
    peaked = Case(**{**vars(case), "logits": "peaked"})
    targets = choose_targets(logits, peaked, g)
    tokens = token_inputs(case, logp_of(logits, targets))
    x = HeadInputs(hidden, weight, targets, normal(case, g), tokens)
    return unclipped(x, normal(case, g) + 0.1)


def peaked_fifth(case: Case) -> HeadInputs:
    """One row in five has a gradient, as with top-entropy 20%."""
    x = peaked_head(case)
    advantages = x.tokens.advantages.clone()
    advantages[torch.arange(case.rows, device=case.device) % 5 != 0] = 0.0
    return unclipped(x, advantages)


def drawn_tails(n: int, g: torch.Generator) -> Tensor:
    """Masses outside the 64 largest entries: log-uniform within each class of rows, shuffled."""
    bounds = [(1e-6, 0.8e-3, SHARES[1e-3]), (1.3e-3, 0.8e-2, SHARES[1e-2]), (2e-2, 0.5, 1.0)]
    tails, start = torch.empty(n, device=g.device), 0
    for low, high, share in bounds:
        stop = max(round(share * n), start)
        u = torch.rand(stop - start, generator=g, device=g.device)
        tails[start:stop] = low * (high / low) ** u
        start = stop
    return tails[torch.randperm(n, generator=g, device=g.device)]


def tail_mass(logits: Tensor, scale: Tensor) -> Tensor:
    """[rows]: probability outside the KEPT largest entries of softmax(scale * logits)."""
    z = logits.float() * scale
    top = z.topk(min(KEPT, z.shape[1]), dim=1).values.logsumexp(1)
    return 1.0 - (top - z.logsumexp(1)).exp()


def scales(logits: Tensor, tails: Tensor) -> Tensor:
    """[rows, 1]: bisection; the tail shrinks as the scale grows."""
    low = torch.zeros(len(logits), 1, device=logits.device)
    high = torch.full_like(low, 64.0)
    for _ in range(16):
        middle = (low + high) / 2
        flat = (tail_mass(logits, middle) > tails)[:, None]
        low, high = torch.where(flat, middle, low), torch.where(flat, high, middle)
    return high
