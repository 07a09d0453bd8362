"""What the ops are run on: Gaussian logits, or peaked ones of a chosen mean entropy.

Gaussian logits of standard deviation 3 over 150,000 tokens have about 7.5 nats; a policy in
training has 0.3 to 3, most tokens near zero and a few "forks" with much more. Both are reported,
because an implementation may profit from one of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.harness.case import Case

GAUSSIAN, GAUSSIAN_SCALE = "gaussian", 3.0
# Of the log of a row's scale: unequal enough that most rows are sure and some are forks.
ROW_SPREAD = 0.4
ENTROPY_TOLERANCE = 0.02
# Rows worked on at once, to hold little beside the logits themselves.
CHUNK = 64
# Log-ratios of the tokens, half of them beyond a clip of 0.2 and all far from its edge: a rounding
# of logp must not decide which tokens are clipped.
LOG_RATIOS = (-0.5, -0.1, 0.1, 0.5)


@dataclass(frozen=True)
class RowInputs:
    logits: Tensor  # [N, V]
    targets: Tensor  # [N]
    upstream: Tensor  # [N] float32, the gradient that arrives at logp and at entropy

    def pick(self, rows: Tensor) -> RowInputs:
        return RowInputs(self.logits[rows], self.targets[rows], self.upstream[rows])

    @functools.cached_property
    def scratch(self) -> Tensor:
        """Shaped like the logits, for whoever's turn it is to write. One for all: at the largest
        sizes there is no room for one each."""
        return torch.empty_like(self.logits)


@dataclass(frozen=True)
class TokenInputs:
    logp: Tensor  # [N] float32, as all of these but mask
    old_logp: Tensor
    advantages: Tensor
    mask: Tensor  # bool

    def first(self, n: int) -> TokenInputs:
        return TokenInputs(self.logp[:n], self.old_logp[:n], self.advantages[:n], self.mask[:n])


@dataclass(frozen=True)
class HeadInputs:
    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H]
    targets: Tensor  # [N]
    upstream: Tensor
    tokens: TokenInputs

    def first(self, n: int) -> HeadInputs:
        rows = (self.hidden[:n], self.weight, self.targets[:n], self.upstream[:n])
        return HeadInputs(*rows, self.tokens.first(n))


@functools.lru_cache(maxsize=1)
def row_inputs(case: Case) -> RowInputs:
    g = generator(case)
    logits = noise(case, g) if case.logits == GAUSSIAN else peaked(case, g)
    targets = choose_targets(logits, case, g)
    return RowInputs(logits, targets, normal(case, g))


def noise(case: Case, g: torch.Generator) -> Tensor:
    """Gaussian logits, a few rows at a time: nothing float32 of their size beside them."""
    logits = torch.empty(case.rows, case.vocab, dtype=case.torch_dtype, device=case.device)
    for part in logits.split(CHUNK):
        part.copy_(torch.randn(part.shape, generator=g, device=case.device).mul_(GAUSSIAN_SCALE))
    return logits


@dataclass(frozen=True)
class FarInputs(RowInputs):
    ordinary: RowInputs  # of the same shape


@functools.lru_cache(maxsize=1)
def far_inputs(case: Case) -> FarInputs:
    """Rows of one logit and, 60 to 105 nats below it, all others, whose e^x and its products with a
    gradient reach the end of float32."""
    x, g = row_inputs(case), generator(case)
    logits = torch.empty_like(x.logits)
    for part in logits.split(CHUNK):
        part.copy_(torch.rand(part.shape, generator=g, device=case.device).mul_(-45).sub_(60))
    logits[:, case.vocab // 2] = 0.0
    return FarInputs(logits, x.targets, x.upstream, x)


def peaked(case: Case, g: torch.Generator) -> Tensor:
    logits = torch.randn(case.rows, case.vocab, generator=g, device=case.device)
    return scale_rows(logits, case, g)


@functools.lru_cache(maxsize=1)
def head_inputs(case: Case) -> HeadInputs:
    g = generator(case)
    dtype, n, width = case.torch_dtype, case.rows, case.width
    hidden = torch.randn(n, width, generator=g, device=case.device)
    weight = torch.randn(case.vocab, width, generator=g, device=case.device)
    weight = weight.mul_(width**-0.5).to(dtype)
    hidden = scale_rows(hidden, case, g, weight)
    logits = torch.cat([part @ weight.t() for part in hidden.split(CHUNK)])
    targets = choose_targets(logits, case, g)
    tokens = token_inputs(case, logp_of(logits, targets))
    return HeadInputs(hidden, weight, targets, normal(case, g), tokens)


def unclipped(x: HeadInputs, advantages: Tensor) -> HeadInputs:
    """The same with these advantages, and ratios that no clip touches."""
    inside = (x.tokens.logp - x.tokens.old_logp).clamp(-0.1, 0.1)
    old = x.tokens.logp - inside
    return replace(x, tokens=replace(x.tokens, old_logp=old, advantages=advantages))


def all_active(case: Case) -> HeadInputs:
    """Every row has a gradient."""
    x = head_inputs(case)
    return unclipped(x, normal(case, generator(case)) + 0.1)


def fifth_active(case: Case) -> HeadInputs:
    """One row in five has a gradient, as with top-entropy 20%."""
    x = all_active(case)
    advantages = x.tokens.advantages.clone()
    advantages[torch.arange(case.rows, device=case.device) % 5 != 0] = 0.0
    return unclipped(x, advantages)


def token_inputs(case: Case, logp: Tensor | None = None) -> TokenInputs:
    g = generator(case)
    logp = -normal(case, g).abs() if logp is None else logp
    log_ratios = torch.tensor(LOG_RATIOS, device=case.device)
    picks = torch.randint(len(LOG_RATIOS), (case.rows,), generator=g, device=case.device)
    advantages = normal(case, g)
    # Half the advantages are zero, as in groups that are all right or all wrong.
    advantages[::2] = 0.0
    mask = torch.ones(case.rows, dtype=torch.bool, device=case.device)
    return TokenInputs(logp, logp - log_ratios[picks], advantages, mask)


def generator(case: Case) -> torch.Generator:
    return torch.Generator(case.device).manual_seed(0)


def normal(case: Case, g: torch.Generator) -> Tensor:
    return torch.randn(case.rows, generator=g, device=case.device)


def scale_rows(
    rows: Tensor,  # [N, V] logits of scale 1, or [N, H] hidden states that give them with `weight`
    case: Case,
    g: torch.Generator,
    weight: Tensor | None = None,
) -> Tensor:
    """`rows` times what gives their softmax the asked mean entropy, in the case's dtype."""
    if case.logits == GAUSSIAN:
        return (GAUSSIAN_SCALE * rows).to(case.torch_dtype)
    rows *= (ROW_SPREAD * normal(case, g)).exp_()[:, None]
    scale = scale_for_entropy(rows, float(case.logits), case.torch_dtype, weight)
    return rows.mul_(scale).to(case.torch_dtype)


def scale_for_entropy(
    rows: Tensor, entropy: float, dtype: torch.dtype, weight: Tensor | None = None
) -> float:
    """The scale at which the mean entropy of softmax(scale * rows) is `entropy`, to 2%.

    Bisection on the log of the scale: the entropy falls as it grows, from log V at 0. Rounded to 16
    bits it falls in jumps, which few rows do not average out: then this is a ValueError.
    """
    low, high = -4.0, 8.0
    for _ in range(24):
        middle = (low + high) / 2
        found = mean_entropy(rows, 2.0**middle, dtype, weight)
        if abs(found - entropy) <= ENTROPY_TOLERANCE * entropy:
            return float(2.0**middle)
        low, high = (middle, high) if found > entropy else (low, middle)
    raise ValueError(f"no scale gives {len(rows)} rows a mean entropy of {entropy} nats")


def mean_entropy(rows: Tensor, scale: float, dtype: torch.dtype, weight: Tensor | None) -> float:
    total = 0.0
    for part in rows.split(CHUNK):
        logits = (scale * part).to(dtype)
        if weight is not None:
            logits = logits @ weight.t()
        p = logits.float().softmax(-1)
        total -= float(torch.special.xlogy(p, p).sum())
    return total / len(rows)


def choose_targets(logits: Tensor, case: Case, g: torch.Generator) -> Tensor:
    """Drawn from the policy itself where it is peaked; any token where it is noise."""
    if case.logits == GAUSSIAN:
        return torch.randint(logits.shape[1], (len(logits),), generator=g, device=case.device)
    return torch.cat([torch.multinomial(p, 1, generator=g)[:, 0] for p in probabilities(logits)])


def probabilities(logits: Tensor) -> Iterator[Tensor]:
    return (part.float().softmax(-1) for part in logits.split(CHUNK))


def logp_of(logits: Tensor, targets: Tensor) -> Tensor:
    parts = zip(logits.split(CHUNK), targets.split(CHUNK), strict=True)
    return torch.cat([z.float().log_softmax(-1).gather(-1, t[:, None])[:, 0] for z, t in parts])
