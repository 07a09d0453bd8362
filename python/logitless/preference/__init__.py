"""Offline and preference losses from log-probs: pure functions of NumPy arrays or torch tensors."""

from __future__ import annotations

from logitless.preference.degree import spo
from logitless.preference.docs_table import markdown, text
from logitless.preference.forms import DIVERGENCES, FORMS, Divergence, Form
from logitless.preference.pairs import cpl, dpo, ipo
from logitless.preference.rewards import uncertainty_weighted, worst_case
from logitless.preference.sequences import sequence_logp
from logitless.preference.steps import Oreo, implicit_rewards, oreo, outcome
from logitless.preference.table import TABLE

__all__ = [
    "DIVERGENCES", "FORMS", "TABLE", "Divergence", "Form", "Oreo", "cpl", "dpo",
    "implicit_rewards", "ipo", "markdown", "oreo", "outcome", "sequence_logp", "spo", "text",
    "uncertainty_weighted", "worst_case",
]  # fmt: skip
