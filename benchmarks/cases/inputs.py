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

from benchmarks.harness.case import Setting

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
def row_inputs(setting: Setting) -> RowInputs:
    g = generator(setting)
    logits = noise(setting, g) if setting.logits == GAUSSIAN else peaked(setting, g)
    targets = choose_targets(logits, setting, g)
    return RowInputs(logits, targets, normal(setting, g))


def noise(setting: Setting, g: torch.Generator) -> Tensor:
    """Gaussian logits, a few rows at a time: nothing float32 of their size beside them."""
    logits = torch.empty(
        setting.rows, setting.vocab, dtype=setting.torch_dtype, device=setting.device
    )
    for part in logits.split(CHUNK):
        part.copy_(torch.randn(part.shape, generator=g, device=setting.device).mul_(GAUSSIAN_SCALE))
    return logits


@dataclass(frozen=True)
class FarInputs(RowInputs):
    ordinary: RowInputs  # of the same shape


@functools.lru_cache(maxsize=1)
def far_inputs(setting: Setting) -> FarInputs:
    """Rows of one logit and, 60 to 105 nats below it, all others, whose e^x and its products with a
    gradient reach the end of float32."""
    x, g = row_inputs(setting), generator(setting)
    logits = torch.empty_like(x.logits)
    for part in logits.split(CHUNK):
        part.copy_(torch.rand(part.shape, generator=g, device=setting.device).mul_(-45).sub_(60))
    logits[:, setting.vocab // 2] = 0.0
    return FarInputs(logits, x.targets, x.upstream, x)


def peaked(setting: Setting, g: torch.Generator) -> Tensor:
    logits = torch.randn(setting.rows, setting.vocab, generator=g, device=setting.device)
    return scale_rows(logits, setting, g)


@functools.lru_cache(maxsize=1)
def head_inputs(setting: Setting) -> HeadInputs:
    g = generator(setting)
    dtype, n, width = setting.torch_dtype, setting.rows, setting.width
    hidden = torch.randn(n, width, generator=g, device=setting.device)
    weight = torch.randn(setting.vocab, width, generator=g, device=setting.device)
    weight = weight.mul_(width**-0.5).to(dtype)
    hidden = scale_rows(hidden, setting, g, weight)
    logits = torch.cat([part @ weight.t() for part in hidden.split(CHUNK)])
    targets = choose_targets(logits, setting, g)
    tokens = token_inputs(setting, logp_of(logits, targets))
    return HeadInputs(hidden, weight, targets, normal(setting, g), tokens)


def unclipped(x: HeadInputs, advantages: Tensor) -> HeadInputs:
    """The same with these advantages, and ratios that no clip touches."""
    inside = (x.tokens.logp - x.tokens.old_logp).clamp(-0.1, 0.1)
    old = x.tokens.logp - inside
    return replace(x, tokens=replace(x.tokens, old_logp=old, advantages=advantages))


def all_active(setting: Setting) -> HeadInputs:
    """Every row has a gradient."""
    x = head_inputs(setting)
    return unclipped(x, normal(setting, generator(setting)) + 0.1)


def fifth_active(setting: Setting) -> HeadInputs:
    """One row in five has a gradient, as with top-entropy 20%."""
    x = all_active(setting)
    advantages = x.tokens.advantages.clone()
    advantages[torch.arange(setting.rows, device=setting.device) % 5 != 0] = 0.0
    return unclipped(x, advantages)


def token_inputs(setting: Setting, logp: Tensor | None = None) -> TokenInputs:
    g = generator(setting)
    logp = -normal(setting, g).abs() if logp is None else logp
    log_ratios = torch.tensor(LOG_RATIOS, device=setting.device)
    picks = torch.randint(len(LOG_RATIOS), (setting.rows,), generator=g, device=setting.device)
    advantages = normal(setting, g)
    # Half the advantages are zero, as in groups that are all right or all wrong.
    advantages[::2] = 0.0
    mask = torch.ones(setting.rows, dtype=torch.bool, device=setting.device)
    return TokenInputs(logp, logp - log_ratios[picks], advantages, mask)


def generator(setting: Setting) -> torch.Generator:
    return torch.Generator(setting.device).manual_seed(0)


def normal(setting: Setting, g: torch.Generator) -> Tensor:
    return torch.randn(setting.rows, generator=g, device=setting.device)


def scale_rows(
    rows: Tensor,  # [N, V] logits of scale 1, or [N, H] hidden states that give them with `weight`
    setting: Setting,
    g: torch.Generator,
    weight: Tensor | None = None,
) -> Tensor:
    """`rows` times what gives their softmax the asked mean entropy, in the setting's dtype."""
    if setting.logits == GAUSSIAN:
        return (GAUSSIAN_SCALE * rows).to(setting.torch_dtype)
    rows *= (ROW_SPREAD * normal(setting, g)).exp_()[:, None]
    scale = scale_for_entropy(rows, float(setting.logits), setting.torch_dtype, weight)
    return rows.mul_(scale).to(setting.torch_dtype)


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


def choose_targets(logits: Tensor, setting: Setting, g: torch.Generator) -> Tensor:
    """Drawn from the policy itself where it is peaked; any token where it is noise."""
    if setting.logits == GAUSSIAN:
        return torch.randint(logits.shape[1], (len(logits),), generator=g, device=setting.device)
    return torch.cat([torch.multinomial(p, 1, generator=g)[:, 0] for p in probabilities(logits)])


def probabilities(logits: Tensor) -> Iterator[Tensor]:
    return (part.float().softmax(-1) for part in logits.split(CHUNK))


def logp_of(logits: Tensor, targets: Tensor) -> Tensor:
    parts = zip(logits.split(CHUNK), targets.split(CHUNK), strict=True)
    return torch.cat([z.float().log_softmax(-1).gather(-1, t[:, None])[:, 0] for z, t in parts])
