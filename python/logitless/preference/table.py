"""The table of preference losses and rewards: a row is a function, its formula and its paper."""

from __future__ import annotations

from logitless.advantages.table import Row
from logitless.preference.degree import spo
from logitless.preference.pairs import cpl, dpo, ipo
from logitless.preference.rewards import uncertainty_weighted, worst_case
from logitless.preference.steps import implicit_rewards, oreo, outcome

_SOURCE = "The formula is that of the authors' code"

TABLE: dict[str, Row] = {
    "dpo": Row(
        dpo,
        "-log s(b m); other forms below",
        "Rafailov et al. 2023, arXiv:2305.18290",
        "The forms are those of TRL 1.16's code, whose numbers the tests replay; the authors' own "
        "were not read.",
    ),
    "ipo": Row(
        ipo,
        "(m - 1 / (2 b))^2",
        "Azar et al. 2023, arXiv:2310.12036",
        'dpo with form="ipo".',
    ),
    "spo": Row(
        spo,
        "-log softmax(scores)_degree",
        "Li et al. 2024, arXiv:2409.17791",
        "Of the paper only the abstract was read, and the authors' repository holds a licence "
        "alone: what the classifier reads and the weight of its loss are the caller's.",
    ),
    "cpl": Row(
        cpl,
        "-log s(a C - bias a R), C and R discounted sums of log-probs, a alpha",
        "Hejna et al. 2023, arXiv:2310.13639",
        f"{_SOURCE}, which does not discount; a 0.1 and bias 0.5 are those of its configurations.",
    ),
    "oreo": Row(
        oreo,
        "mean over states of (V_t + b sum of ratios from t on - R)^2; of the policy's, only the "
        "ratios of the state's own action have a gradient",
        "Wang et al. 2024, arXiv:2412.16145",
        f"{_SOURCE}: its value loss, and the policy loss of its scripts (dro_actor_loss); b is "
        "0.03 there.",
    ),
    "implicit_rewards": Row(
        implicit_rewards,
        "per step: b sum of its ratios",
        "Yuan et al. 2024, arXiv:2412.01981",
        f"{_SOURCE}, which has b 0.001 in its evaluation.",
    ),
    "outcome": Row(
        outcome,
        "-l log s(b x) - (1 - l) log s(-b x), x the answer's log-ratio, l its label",
        "Yuan et al. 2024, arXiv:2412.01981",
        f"{_SOURCE}.",
    ),
    "worst_case": Row(
        worst_case, "min over models of r", "Coste et al. 2023, arXiv:2310.02743", f"{_SOURCE}."
    ),
    "uncertainty_weighted": Row(
        uncertainty_weighted,
        "mean over models of r - coefficient var r",
        "Coste et al. 2023, arXiv:2310.02743",
        f"{_SOURCE} for best-of-n; its PPO has the unbiased variance, M / (M - 1) times this.",
    ),
}
