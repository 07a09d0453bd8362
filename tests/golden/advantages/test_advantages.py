"""verl's own advantages, replayed: where we agree, and where we differ on purpose.

tests/golden/advantages/make_advantages.py wrote the file from the real package.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitless import advantages as ours

GOLDEN = json.loads(Path(__file__).with_name("advantages.json").read_text())
X = {name: np.array(x) for name, x in GOLDEN["inputs"].items()}
ANSWERS = {name: np.array(x) for name, x in GOLDEN["answers"].items()}
TOKENS = {name: np.array(x) for name, x in GOLDEN["tokens"].items()}
SCORES, GROUPS, MASK, HOLES = X["scores"], X["groups"], X["mask"], X["holes"]
LENGTHS = MASK.sum(axis=1)
# group 7
SINGLE = 8
PAIRS = np.arange(SCORES.size) != SINGLE

# verl adds 1e-8 to the sum of a mask before it whitens
WHITENED = 1e-9
KINDS = np.stack([SCORES, X["format"]])
# Theirs -> ours. verl keeps the score of a single answer.
SAME: dict[str, Callable[[], Any]] = {
    "grpo": lambda: ours.grpo(SCORES, GROUPS),
    "dr_grpo": lambda: ours.dr_grpo(SCORES, GROUPS),
    "rloo": lambda: ours.rloo(SCORES, GROUPS),
    "rloo_vectorized": lambda: ours.rloo(SCORES, GROUPS),
    "opo": lambda: ours.opo(SCORES, LENGTHS, GROUPS),
}


@pytest.mark.parametrize("name", SAME)
def test_answers(name: str) -> None:
    np.testing.assert_allclose(SAME[name]()[PAIRS], ANSWERS[name][PAIRS], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAME)
def test_a_single_answer_gets_its_score_there_and_nothing_here(name: str) -> None:
    """A difference we mean: nothing can be compared, so nothing is taught."""
    assert SAME[name]()[SINGLE] == 0.0
    theirs = 0.0 if name == "rloo_vectorized" else SCORES[SINGLE]
    assert ANSWERS[name][SINGLE] == pytest.approx(theirs, rel=2e-6)


def test_grpo_vectorized_works_in_float32() -> None:
    expected = ANSWERS["grpo_vectorized"][PAIRS]
    np.testing.assert_allclose(ours.grpo(SCORES, GROUPS)[PAIRS], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "scale"), [("grpo_passk", True), ("grpo_passk.unscaled", False)])
def test_grpo_passk(name: str, scale: bool) -> None:
    result = ours.grpo_passk(SCORES[PAIRS], GROUPS[PAIRS], scale=scale)
    np.testing.assert_allclose(result, ANSWERS[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "f_norm"), [("gpg", 1.0), ("gpg.f_norm", 0.5)])
def test_gpg_counts_answers_of_groups_that_differ_where_verl_counts_scores(
    name: str, f_norm: float
) -> None:
    """A difference we mean: the authors' code counts as we do."""
    result = ours.gpg(SCORES, GROUPS, f_norm=f_norm)
    differ, not_zero = int(np.isin(GROUPS, (4, 9)).sum()), int(np.count_nonzero(SCORES))
    assert (differ, not_zero) == (5, 4)
    theirs = ANSWERS[name][PAIRS] * not_zero / differ
    np.testing.assert_allclose(result[PAIRS], theirs, rtol=1e-12, atol=1e-12)


def test_reinforce_plus_plus_baseline() -> None:
    arrays = (SCORES[PAIRS], LENGTHS[PAIRS], GROUPS[PAIRS])
    theirs = ANSWERS["reinforce_plus_plus_baseline"]
    result = ours.reinforce_plus_plus_baseline(*arrays)
    np.testing.assert_allclose(result, theirs, rtol=WHITENED, atol=WHITENED)


@pytest.mark.parametrize(("name", "weights"), [("gdpo", None), ("gdpo.weights", (0.5, 2.0))])
def test_gdpo_works_in_float32(name: str, weights: Any) -> None:
    result = ours.gdpo(KINDS[:, PAIRS], weights, LENGTHS[PAIRS], GROUPS[PAIRS])
    np.testing.assert_allclose(result, ANSWERS[name], rtol=2e-6, atol=2e-6)


def gae() -> ours.GAE:
    return ours.gae(X["rewards"], X["values"], HOLES, gamma=0.9, lam=0.8)


def baseline(mask: Any, **options: Any) -> Any:
    arrays = (X["rewards"], X["old_logp"], X["sum_p2"], GROUPS, mask)
    return ours.optimal_token_baseline(*arrays, **options)


TOKEN_CASES: dict[str, Callable[[], Any]] = {
    "reinforce_plus_plus": lambda: ours.reinforce_plus_plus(X["rewards"], HOLES, gamma=0.9),
    "remax": lambda: (ours.returns(X["rewards"], HOLES) - X["greedy"][:, None]) * HOLES,
    "gae": lambda: ours.whiten(gae().advantages, HOLES),
    "gae.returns": lambda: gae().returns,
    "optimal_token_baseline": lambda: baseline(MASK),
    "optimal_token_baseline.weights": lambda: baseline(MASK, weights=X["weights"]),
    "tir_optimal_token_baseline": lambda: baseline(HOLES),
}


@pytest.mark.parametrize("name", TOKEN_CASES)
def test_tokens(name: str) -> None:
    tolerance = WHITENED if name in ("gae", "reinforce_plus_plus") else 1e-12
    np.testing.assert_allclose(TOKEN_CASES[name](), TOKENS[name], rtol=tolerance, atol=tolerance)


def test_every_number_is_replayed() -> None:
    others = {"grpo_vectorized", "grpo_passk", "grpo_passk.unscaled", "gpg", "gpg.f_norm"}
    others |= {"reinforce_plus_plus_baseline", "gdpo", "gdpo.weights"}
    assert set(ANSWERS) == set(SAME) | others
    assert set(TOKENS) == set(TOKEN_CASES)
