"""The table of advantages: a row is a function, its formula and its paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from logitless.advantages.baselines import dr_grpo, gpg, grpo, max_rl, opo, qae, remax, rloo
from logitless.advantages.pass_at_k import grpo_passk, pass_at_k
from logitless.advantages.returns import gae, length_adaptive_lambda
from logitless.advantages.token_baselines import min_form, optimal_token_baseline, pure
from logitless.advantages.whitened import (
    gdpo,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
)


@dataclass(frozen=True)
class Row:
    """In `formula`, r is the reward of an answer, mean and std are over its group of K answers."""

    function: Callable[..., Any]
    formula: str
    paper: str
    note: str = ""


_SOURCE = "The formula is that of the authors' code"
_VERL = "The formula is that of verl's code; the authors' was not read."

TABLE: dict[str, Row] = {
    "grpo": Row(
        grpo,
        "(r - mean r) / (std r + eps)",
        "Shao et al. 2024, arXiv:2402.03300",
        f"std is unbiased and eps 1e-6; TRL's eps is 1e-4. {_VERL}",
    ),
    "dr_grpo": Row(dr_grpo, "r - mean r", "Liu et al. 2025, arXiv:2503.20783", _VERL),
    "rloo": Row(
        rloo, "r - mean of the group's other r", "Ahmadian et al. 2024, arXiv:2402.14740", _VERL
    ),
    "remax": Row(remax, "r - r of the greedy answer", "Li et al. 2023, arXiv:2310.10505", _VERL),
    "opo": Row(
        opo,
        "r - sum(length r) / sum(length)",
        "Hao et al. 2025, arXiv:2505.23585",
        f"{_SOURCE}, which is verl's.",
    ),
    "gpg": Row(
        gpg,
        "alpha (r - mean r) / f_norm, alpha = answers / answers of groups whose r differ",
        "Chu et al. 2025, arXiv:2504.02546",
        f"{_SOURCE}, less its 1e-5. verl's alpha counts rewards that are not 0 instead.",
    ),
    "max_rl": Row(
        max_rl,
        "(r - mean r) / (mean r + eps), r >= 0",
        "Tajwar et al. 2026, arXiv:2602.02710",
        f"{_SOURCE}.",
    ),
    "qae": Row(
        qae,
        "(r - 0.4-quantile of r) / (std r + eps)",
        "Wu et al. 2025, arXiv:2509.22611",
        "Quantile and default were read from the authors' description of their code, a change of "
        "one line to verl's grpo; the code itself could not be had.",
    ),
    "pass_at_k": Row(
        pass_at_k,
        "r = 1: (1 - m) / s; r = 0: (1 - m - C(wrong - 1, k - 1) / C(K - 1, k - 1)) / s; "
        "m = 1 - C(wrong, k) / C(K, k), s = sqrt(m (1 - m)) + eps",
        "Chen et al. 2025, arXiv:2508.10751",
        "Read from descriptions of the paper, which agree; the tests compare it with all "
        "k-subsets, of which it is the mean.",
    ),
    "grpo_passk": Row(
        grpo_passk,
        "best answer: (r - second r) / (std r + eps); others: 0",
        "Tang et al. 2025, arXiv:2503.19595",
        f"scale=False does not divide. {_VERL}",
    ),
    "reinforce_plus_plus": Row(
        reinforce_plus_plus,
        "per token: whiten(sum of gamma^(t' - t) r_t'), over all tokens of the batch",
        "Hu et al. 2025, arXiv:2501.03262",
        _VERL,
    ),
    "reinforce_plus_plus_baseline": Row(
        reinforce_plus_plus_baseline,
        "whiten(r - mean r), over all tokens of the batch",
        "Hu et al. 2025, arXiv:2501.03262",
        f"Over tokens where lengths are given. {_VERL}",
    ),
    "gdpo": Row(
        gdpo,
        "whiten(sum_d w_d (r_d - mean r_d) / (std r_d + eps)), over all tokens of the batch",
        "Liu et al. 2026, arXiv:2601.05242",
        "As in the authors' verl, given lengths. Their TRL counts each answer once, divides by std "
        "+ 1e-4 there, and has eps 1e-4.",
    ),
    "gae": Row(
        gae,
        "per token: A_t = d_t + gamma lambda A_(t + 1), d_t = r_t + gamma V_(t + 1) - V_t",
        "Schulman et al. 2015, arXiv:1506.02438",
        f"verl whitens it as well: whiten(gae(...).advantages, mask). {_VERL}",
    ),
    "length_adaptive_lambda": Row(
        length_adaptive_lambda,
        "lambda = 1 - 1 / (alpha length), at least 0",
        "Yue et al. 2025, arXiv:2504.05118",
        "VAPO's lambda for gae, alpha 0.05. Read from descriptions of the paper; the bound at 0, "
        "for lengths below 1 / alpha, is ours.",
    ),
    "optimal_token_baseline": Row(
        optimal_token_baseline,
        "per token: G_t - sum(G_t W_t) / (sum W_t + eps) over the group, W_t = sum of w^2 (1 - 2 p "
        "+ sum p^2) up to t",
        "Li et al. 2026, arXiv:2602.07078",
        "The formula is that of verl's code; of the paper only the abstract was read.",
    ),
    "min_form": Row(
        min_form,
        "per step: softmax(-r / T)_t r_t",
        "Cheng et al. 2025, arXiv:2504.15275",
        f"{_SOURCE}, T = 0.1. The sum is near min r.",
    ),
    "pure": Row(
        pure,
        "per token: R_t - sum of the others' R / ((K - 1) max_length), R_t = min_form's rewards "
        "from t on",
        "Cheng et al. 2025, arXiv:2504.15275",
        f"{_SOURCE}.",
    ),
}
