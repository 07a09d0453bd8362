"""The losses of a pair of answers: a form is a row, and so is a divergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from logitless.inputs.tokens import Float64s


@dataclass(frozen=True)
class Pairs:
    """What a form sees of B pairs, all [B]."""

    xp: Any
    # log-ratios to the reference
    chosen: Float64s
    rejected: Float64s
    # the divergence's score of `chosen` less that of `rejected`, which is chosen - rejected of the
    # reverse KL
    margin: Float64s
    # log-prob of chosen less that of rejected, of the policy and of the reference
    policy_margin: Float64s
    ref_margin: Float64s
    beta: float
    smoothing: float
    tau: float

    def log_sigmoid(self, x: Float64s) -> Float64s:
        return self.xp.log_sigmoid(x)

    def sigmoid(self, x: Float64s) -> Float64s:
        return self.xp.exp(self.xp.log_sigmoid(x))

    def smoothed(self, x: Float64s) -> Float64s:
        """-log sigmoid(x), for the share of labels that are flipped -log sigmoid(-x)."""
        right = -self.log_sigmoid(x)
        if self.smoothing == 0.0:
            return right
        return (1 - self.smoothing) * right - self.smoothing * self.log_sigmoid(-x)


@dataclass(frozen=True)
class Form:
    """In `formula`, c and r are the log-ratios of chosen and rejected answer, m is their margin
    c - r, s the sigmoid, b beta and e label_smoothing."""

    loss: Callable[[Pairs], Float64s]
    formula: str
    paper: str
    note: str = ""
    # of m alone, so that another divergence may make it
    of_margin: bool = False
    # label_smoothing must lie in [low, below); None: it has no part
    smoothing: tuple[float, float] | None = None


@dataclass(frozen=True)
class Divergence:
    """In `formula`, x is a log-ratio: the margin is score(c) - score(r)."""

    score: Callable[[Any, Float64s, float], Float64s]
    formula: str


def _exo(p: Pairs) -> Float64s:
    right, wrong = p.log_sigmoid(p.beta * p.margin), p.log_sigmoid(-p.beta * p.margin)
    from_right = right - math.log1p(-p.smoothing)
    from_wrong = wrong - math.log(p.smoothing)
    return p.xp.exp(right) * from_right + p.xp.exp(wrong) * from_wrong


def _robust(p: Pairs) -> Float64s:
    right, wrong = p.log_sigmoid(p.beta * p.margin), p.log_sigmoid(-p.beta * p.margin)
    return (p.smoothing * wrong - (1 - p.smoothing) * right) / (1 - 2 * p.smoothing)


def _discopop(p: Pairs) -> Float64s:
    x = p.beta * p.margin
    share, rest = p.log_sigmoid(x / p.tau), p.sigmoid(-x / p.tau)
    # added, for exp(-x) alone may be infinite where the share is 0
    return p.xp.exp(share - x) - rest * p.log_sigmoid(x)


def _nca(p: Pairs) -> Float64s:
    c, r = p.beta * p.chosen, p.beta * p.rejected
    return -p.log_sigmoid(c) - 0.5 * p.log_sigmoid(-c) - 0.5 * p.log_sigmoid(-r)


FORMS: dict[str, Form] = {
    "sigmoid": Form(
        lambda p: p.smoothed(p.beta * p.margin),
        "-(1 - e) log s(b m) - e log s(-b m)",
        "Rafailov et al. 2023, arXiv:2305.18290",
        "DPO; with e > 0 cDPO (Mitchell 2023). TRL's `sigmoid` ignores label_smoothing, its "
        "`sigmoid_norm` is this of average log-probs.",
        of_margin=True,
        smoothing=(0.0, 1.0),
    ),
    "hinge": Form(
        lambda p: p.xp.maximum(1 - p.beta * p.margin, 0.0),
        "max(0, 1 - b m)",
        "Zhao et al. 2023, arXiv:2305.10425; Liu et al. 2023, arXiv:2309.06657",
        "SLiC's loss on DPO's margin, as RSO has it; 1 / b is the margin.",
        of_margin=True,
    ),
    "ipo": Form(
        lambda p: (p.margin - 1 / (2 * p.beta)) ** 2,
        "(m - 1 / (2 b))^2",
        "Azar et al. 2023, arXiv:2310.12036",
        "b is the paper's tau. TRL gives it average log-probs, after asking the authors.",
        of_margin=True,
    ),
    "exo_pair": Form(
        _exo,
        "q log(q / (1 - e)) + (1 - q) log((1 - q) / e), q = s(b m)",
        "Ji et al. 2024, arXiv:2402.00856",
        "e > 0.",
        of_margin=True,
        smoothing=(math.ulp(0.0), 1.0),
    ),
    "robust": Form(
        _robust,
        "(-(1 - e) log s(b m) + e log s(-b m)) / (1 - 2 e)",
        "Chowdhury et al. 2024, arXiv:2403.00409",
        "The mean over flipped labels is the loss of the right ones; e < 0.5.",
        of_margin=True,
        smoothing=(0.0, 0.5),
    ),
    "discopop": Form(
        _discopop,
        "w exp(-b m) - (1 - w) log s(b m), w = s(b m / tau)",
        "Lu et al. 2024, arXiv:2406.08414",
        "tau 0.05.",
        of_margin=True,
    ),
    "nca_pair": Form(
        _nca,
        "-log s(b c) - log s(-b c) / 2 - log s(-b r) / 2",
        "Chen et al. 2024, arXiv:2402.05369",
    ),
    "bco_pair": Form(
        lambda p: -p.log_sigmoid(p.beta * p.chosen) - p.log_sigmoid(-p.beta * p.rejected),
        "-log s(b c) - log s(-b r)",
        "Jung et al. 2024, arXiv:2404.04656",
        "Without the paper's shift of the reward.",
    ),
    "sppo_hard": Form(
        lambda p: (p.chosen - 0.5 / p.beta) ** 2 + (p.rejected + 0.5 / p.beta) ** 2,
        "(c - 1 / (2 b))^2 + (r + 1 / (2 b))^2",
        "Wu et al. 2024, arXiv:2405.00675",
        "The chosen answer wins with probability 1.",
    ),
    "apo_zero": Form(
        lambda p: 1 - p.sigmoid(p.beta * p.chosen) + p.sigmoid(p.beta * p.rejected),
        "1 - s(b c) + s(b r)",
        "D'Oosterlinck et al. 2024, arXiv:2408.06266",
        "For chosen answers that are better than the policy's own.",
    ),
    "apo_down": Form(
        lambda p: p.sigmoid(p.beta * p.chosen) + p.sigmoid(-p.beta * (p.chosen - p.rejected)),
        "s(b c) + 1 - s(b (c - r))",
        "D'Oosterlinck et al. 2024, arXiv:2408.06266",
        "For chosen answers that are worse than the policy's own.",
    ),
    "aot": Form(
        lambda p: p.smoothed(p.beta * (p.xp.sort(p.policy_margin) - p.xp.sort(p.ref_margin))),
        "sigmoid's, of the sorted margins of the policy less the sorted ones of the reference",
        "Melnyk et al. 2024, arXiv:2406.05882",
        "It looks at the whole batch, and its losses belong to ranks and not to pairs.",
        smoothing=(0.0, 1.0),
    ),
    "aot_unpaired": Form(
        lambda p: p.smoothed(p.beta * (p.xp.sort(p.chosen) - p.xp.sort(p.rejected))),
        "sigmoid's, of sorted c less sorted r",
        "Melnyk et al. 2024, arXiv:2406.05882",
        "As aot.",
        smoothing=(0.0, 1.0),
    ),
}


def _alpha(xp: Any, x: Float64s, alpha: float) -> Float64s:
    return x if alpha == 1.0 else (xp.exp((alpha - 1) * x) - 1) / (alpha - 1)


# f-DPO: Wang et al. 2023, arXiv:2309.16240
DIVERGENCES: dict[str, Divergence] = {
    "reverse_kl": Divergence(lambda xp, x, alpha: x, "x"),
    "forward_kl": Divergence(lambda xp, x, alpha: 1 - xp.exp(-x), "1 - exp(-x)"),
    "js_divergence": Divergence(
        lambda xp, x, alpha: math.log(2) + xp.log_sigmoid(x), "log 2 + log s(x)"
    ),
    "alpha_divergence": Divergence(_alpha, "(exp((alpha - 1) x) - 1) / (alpha - 1)"),
}
