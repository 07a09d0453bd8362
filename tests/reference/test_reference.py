"""The oracle against finite differences and against values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from logitless import reference
from tests.support.row_outputs import REALS

RNG = np.random.default_rng(0)
CHAINS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "row-temperature": {"temperature": np.array([0.5, 1.0, 2.0])},
    "softcap": {"softcap": 1.5},
    "scale": {"logit_scale": -0.3},
    "all": {"temperature": 1.3, "softcap": 4.0, "logit_scale": 1.7, "bias": np.linspace(-1, 1, 6)},
}
TARGETS = np.array([2, 5, 0])


def spec(surrogate: Any = None, **fields: Any) -> SimpleNamespace:
    base = dict.fromkeys(("control", "kl", "entropy", "correction", "max_length"))
    base |= {"ratio": "token", "aggregation": "token-mean"}
    surrogate = surrogate or named("Clip", low=0.2, high=0.28, dual=None)
    return SimpleNamespace(surrogate=surrogate, **{**base, **fields})


def named(kind: str, **fields: Any) -> Any:
    return type(kind, (), fields)()


def differences(f: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function, one element at a time."""
    grad = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += h
        down[i] -= h
        grad[i] = (f(up) - f(down)) / (2 * h)
    return grad


def test_two_equal_logits_by_hand() -> None:
    stats = reference.token_stats(np.array([[3.0, 3.0]]), np.array([1]))
    assert stats["logp"][0] == pytest.approx(-math.log(2), abs=1e-15)
    assert stats["entropy"][0] == pytest.approx(math.log(2), abs=1e-15)
    assert stats["lse"][0] == pytest.approx(3 + math.log(2), abs=1e-15)
    assert stats["varentropy"][0] == pytest.approx(0.0, abs=1e-15)
    assert stats["sum_p2"][0] == pytest.approx(0.5, abs=1e-15)
    assert stats["argmax"][0] == 0


def test_quarter_and_three_quarters_by_hand() -> None:
    stats = reference.token_stats(np.log([[1.0, 3.0]]), np.array([0]))
    entropy = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    s0, s1 = 0.25 * (math.log(0.25) + entropy), 0.75 * (math.log(0.75) + entropy)
    assert stats["logp"][0] == pytest.approx(math.log(0.25), abs=1e-15)
    assert stats["entropy"][0] == pytest.approx(entropy, abs=1e-15)
    assert stats["varentropy"][0] == pytest.approx(
        0.25 * math.log(0.25) ** 2 + 0.75 * math.log(0.75) ** 2 - entropy**2, abs=1e-15
    )
    assert stats["sum_p2"][0] == pytest.approx(0.625, abs=1e-15)
    assert stats["log_sum_p2"][0] == pytest.approx(math.log(0.625), abs=1e-15)
    assert stats["mean_logit"][0] == pytest.approx(0.75 * math.log(3), abs=1e-15)
    assert stats["entropy_change"][0] == pytest.approx(-(s0 - 0.25 * s0 - 0.75 * s1), abs=1e-15)


def test_entropy_change_is_the_first_order_change_under_a_policy_gradient_step() -> None:
    z, a, step = RNG.normal(size=(1, 6)), np.array([2]), 1e-6
    ascent, _ = reference.token_stats_backward(z, a, g_logp=1.0)
    after, before = (reference.token_stats(x, a)["entropy"][0] for x in (z + step * ascent, z))
    predicted = reference.token_stats(z, a)["entropy_change"][0]
    assert predicted == pytest.approx((after - before) / step, rel=1e-5)


def test_minus_infinity_contributes_nothing() -> None:
    z = np.array([[1.0, -np.inf, 0.5]])
    without = reference.token_stats(np.array([[1.0, 0.5]]), np.array([1]))
    with_it = reference.token_stats(z, np.array([2]))
    for name in REALS:
        assert with_it[name][0] == pytest.approx(without[name][0], abs=1e-15), name
    grad, _ = reference.token_stats_backward(z, np.array([2]), g_logp=1.0, g_entropy=1.0)
    assert np.isfinite(grad).all() and grad[0, 1] == 0.0


@pytest.mark.parametrize(
    "row, target",
    [([np.nan, 0], 0), ([np.inf, 0], 0), ([-np.inf, -np.inf], 0), ([0, 0], 2), ([0, 0], -1)],
)
def test_a_row_without_meaning_is_refused_unless_masked(row: list[float], target: int) -> None:
    with pytest.raises(ValueError, match="row 0"):
        reference.token_stats(np.array([row]), np.array([target]))
    stats = reference.token_stats(np.array([row]), np.array([target]), mask=np.array([False]))
    assert all(value[0] == 0 for value in stats.values())


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_gradient_of_the_rows(chain: dict[str, Any]) -> None:
    raw, mask = RNG.normal(size=(3, 6)), np.array([True, False, True])
    raw[0, 3] = -1e9 if "softcap" in chain else raw[0, 3]
    g = {f"g_{n}": RNG.normal(size=3) for n in ("logp", "entropy", "lse")}

    def total(x: np.ndarray, **changed: Any) -> float:
        stats = reference.token_stats(x, TARGETS, mask=mask, **{**chain, **changed})
        return float(sum((g[f"g_{n}"] * stats[n]).sum() for n in ("logp", "entropy", "lse")))

    dlogits, dbias = reference.token_stats_backward(raw, TARGETS, mask=mask, **g, **chain)
    np.testing.assert_allclose(dlogits, differences(total, raw), atol=2e-8)
    bias = np.asarray(chain.get("bias", np.zeros(6)), float)
    np.testing.assert_allclose(dbias, differences(lambda b: total(raw, bias=b), bias), atol=2e-8)


SETS = [[2, 0, 4], [], [3, 0]]


def test_a_set_by_hand() -> None:
    """Half of the mass is kept, and of that the target has a quarter."""
    z = np.log(np.array([[0.125, 0.375, 0.3, 0.2]]))
    stats = reference.token_stats(z, np.array([0]), sets=[[1, 0]])
    assert stats["logp"] == pytest.approx(math.log(0.25))
    assert stats["lse"] == pytest.approx(math.log(0.5))
    assert stats["entropy"] == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    assert reference.kept_mass(z, [[1, 0]]) == pytest.approx(0.5)
    assert stats["argmax"] == 1
    for wrong in ([[1, 2]], [[0, 9]], [[0, 0]]):
        with pytest.raises(ValueError, match="row 0: no set of ids"):
            reference.token_stats(z, np.array([0]), sets=wrong)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_gradient_of_rows_with_sets(chain: dict[str, Any]) -> None:
    raw = RNG.normal(size=(3, 6))
    g = {f"g_{n}": RNG.normal(size=3) for n in ("logp", "entropy", "lse")}

    def total(x: np.ndarray) -> float:
        stats = reference.token_stats(x, TARGETS, sets=SETS, **chain)
        return float(sum((g[f"g_{n}"] * stats[n]).sum() for n in ("logp", "entropy", "lse")))

    dlogits, _ = reference.token_stats_backward(raw, TARGETS, sets=SETS, **g, **chain)
    np.testing.assert_allclose(dlogits, differences(total, raw), atol=2e-8)
    assert (dlogits[0, [1, 3, 5]] == 0).all() and (dlogits[1] != 0).all()


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_gradient_of_the_linear_path(chain: dict[str, Any]) -> None:
    hidden, weight = RNG.normal(size=(3, 4)), RNG.normal(size=(6, 4))
    mask = np.array([True, True, False])
    hidden[2] = np.nan
    g = {f"g_{n}": RNG.normal(size=3) for n in ("logp", "entropy", "lse")}

    def total(h: np.ndarray, w: np.ndarray) -> float:
        stats = reference.linear_token_stats(h, w, TARGETS, mask=mask, **chain)
        return float(sum((g[f"g_{n}"] * stats[n]).sum() for n in ("logp", "entropy", "lse")))

    dhidden, dweight, dbias = reference.linear_token_stats_backward(
        hidden, weight, TARGETS, mask=mask, **g, **chain
    )
    expected = differences(lambda h: total(h, weight), hidden)
    np.testing.assert_allclose(dhidden[:2], expected[:2], atol=2e-8)
    assert (dhidden[2] == 0).all()
    np.testing.assert_allclose(dweight, differences(lambda w: total(hidden, w), weight), atol=2e-8)
    assert dbias.shape == (6,)


LOSSES = {
    "clip": spec(),
    "dual": spec(named("Clip", low=0.2, high=0.2, dual=3.0)),
    "unclipped": spec(named("Unclipped")),
    "clip-cov": spec(control=named("ClipCov", fraction=0.2, low=-5.0, high=5.0)),
    "kl-cov": spec(named("Unclipped"), control=named("KLCov", fraction=0.2, coefficient=0.7)),
    "top-entropy": spec(control=named("TopEntropy", fraction=0.3)),
    "clip-b": spec(control=named("ClipB", mu=0.5)),
    "seq-mean-token-sum": spec(aggregation="seq-mean-token-sum"),
    "seq-mean-token-mean": spec(aggregation="seq-mean-token-mean"),
    "seq-mean-token-sum-norm": spec(aggregation="seq-mean-token-sum-norm"),
    "token-sum": spec(aggregation="token-sum"),
    "entropy": spec(entropy=named("EntropyBonus", coefficient=0.3)),
    "floor": spec(entropy=named("EntropyFloor", strength=0.3, target=0.6)),
    **{
        e: spec(kl=SimpleNamespace(estimator=e, coefficient=0.2))
        for e in ("k1", "k2", "k3", "abs", "low_var")
    },
    "kl-ratio": spec(kl=SimpleNamespace(estimator="k3", coefficient=0.2, weight="ratio")),
    "own-kl": spec(kl=SimpleNamespace(estimator="k3", coefficient=0.2, aggregation="token-sum")),
    "own-entropy": spec(
        entropy=named("EntropyBonus", coefficient=0.3, aggregation="seq-mean-token-mean")
    ),
    "sapo": spec(named("Sapo", tau_positive=1.0, tau_negative=1.05)),
    "sapo-sequence": spec(named("Sapo", tau_positive=1.0, tau_negative=1.05), ratio="sequence"),
    "dro": spec(named("Dro", beta=0.3)),
    "dcpo": spec(named("Dcpo", low=0.2, high=0.28, most=10.0, dual=10.0)),
    "trust": spec(named("TrustMask", divergence="tv", low=0.5, high=0.5, cap=None, two_sided=True)),
    "reinforce": spec(
        named("Reinforce"), ratio="none", control=named("SignWeights", positive=0.3, negative=1.5)
    ),
    "gspo": spec(ratio="sequence"),
    "sequence-sum": spec(named("Clip", low=0.9, high=3.0, dual=None), ratio="sequence_sum"),
    "gmpo": spec(
        named("Gmpo", low=0.4, high=0.4), ratio="sequence", aggregation="seq-mean-token-mean"
    ),
}


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("loss_spec", LOSSES.values(), ids=LOSSES)
def test_gradient_of_the_policy_losses(loss_spec: SimpleNamespace, weighted: bool) -> None:
    rng = np.random.default_rng(1)
    logp, old, ref = (-rng.exponential(size=(3, 5)) for _ in range(3))
    mask = rng.random((3, 5)) < 0.8
    a, h = rng.normal(size=3), rng.random((3, 5))
    weights = rng.exponential(size=(3, 5)) if weighted else None

    def run(lp: np.ndarray, entropy: np.ndarray) -> tuple[float, dict[str, float], Any, Any]:
        return reference.policy_loss(
            lp, old, a, mask, loss_spec, entropy=entropy, ref_logp=ref, weights=weights,
            grad_scale=2.0,
        )  # fmt: skip

    loss, metrics, g_logp, g_entropy = run(logp, h)
    step = 1e-5
    np.testing.assert_allclose(g_logp, differences(lambda x: run(x, h)[0], logp, step), atol=1e-7)
    np.testing.assert_allclose(
        g_entropy, differences(lambda x: run(logp, x)[0], h, step), atol=1e-7
    )
    assert np.abs(g_logp).max() > 1e-3 and math.isfinite(loss)
    assert all(math.isfinite(v) for v in metrics.values())


def test_clip_by_hand() -> None:
    """Ratios 2 and 1/2 under both signs: only what the advantage pushes further out is flat."""
    logp, a = np.log([2.0, 0.5, 2.0, 0.5]), np.array([1.0, 1.0, -1.0, -1.0])
    loss, metrics, g, _ = reference.policy_loss(
        logp, np.zeros(4), a, np.ones(4, bool), spec(aggregation="token-sum")
    )
    assert loss == pytest.approx(-1.28 - 0.5 + 2.0 + 0.8)
    np.testing.assert_allclose(g, [0.0, -0.5, 2.0, 0.0], atol=1e-15)
    assert metrics["actor/pg_clipfrac"] == 0.5
    assert metrics["actor/ppo_kl"] == pytest.approx(0.0, abs=1e-15)


def test_dual_clip_by_hand() -> None:
    loss, metrics, g, _ = reference.policy_loss(
        np.log([4.0]), np.zeros(1), -np.ones(1), np.ones(1, bool),
        spec(named("Clip", low=0.2, high=0.2, dual=3.0)),
    )  # fmt: skip
    assert (loss, g[0], metrics["actor/pg_clipfrac_lower"]) == (3.0, 0.0, 1.0)


def test_aggregation_by_hand() -> None:
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    expected = {
        "token-mean": [1 / 4, 1 / 4],
        "token-sum": [1, 1],
        "seq-mean-token-sum": [1 / 2, 1 / 2],
        "seq-mean-token-mean": [1 / 6, 1 / 2],
        "seq-mean-token-sum-norm": [1 / 6, 1 / 6],
    }
    for aggregation, (first, second) in expected.items():
        w = reference.token_weights(mask, aggregation)
        np.testing.assert_allclose(
            w, np.array([first] * 3 + [second] + [0] * 5), err_msg=aggregation
        )


def test_covariance_and_selection_by_hand() -> None:
    logp, a = np.array([-1.0, -2.0, -3.0, np.nan]), np.array([1.0, 0.0, -1.0, np.nan])
    mask = np.array([True, True, True, False])
    cov, mean_a, mean_lp = reference.covariance(logp, a, mask)
    assert (mean_a, mean_lp) == (0.0, -2.0)
    np.testing.assert_array_equal(cov, [1.0, 0.0, 1.0, 0.0])
    # equal covariances: the smaller token id is taken
    kl_cov = spec(control=named("KLCov", fraction=0.1, coefficient=1.0))
    assert reference.select(logp, a, mask, kl_cov, token_ids=np.array([9, 3, 7, 1])) == [7]
    top = spec(control=named("TopEntropy", fraction=0.7))
    assert reference.select(logp, a, mask, top, entropy=np.array([1, 2, 3, 4.0])) == [1, 2]


def test_philox_known_answers() -> None:
    """The published vectors of Random123 for philox4x32-10."""
    ones = 0xFFFFFFFF
    assert reference.philox((0, 0, 0, 0), (0, 0)) == (
        0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8,
    )  # fmt: skip
    assert reference.philox((ones, ones, ones, ones), (ones, ones)) == (
        0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD,
    )  # fmt: skip
    assert reference.philox(
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    ) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_entropy_law_recovers_an_exact_law() -> None:
    entropy = np.array([0.1, 0.5, 0.9, 1.4])
    law = reference.fit_entropy_law(entropy, 1.2 - 0.3 * np.exp(entropy))
    assert law["a"] == pytest.approx(0.3) and law["b"] == pytest.approx(1.2)
    assert law["ceiling"] == pytest.approx(0.9) and law["r2"] == pytest.approx(1.0)


def test_student_t_table() -> None:
    """Two-sided 95% points of any printed table."""
    for dof, point in {1: 12.706, 2: 4.303, 5: 2.571, 30: 2.042, 1000: 1.962}.items():
        assert reference.student_t_975(dof) == pytest.approx(point, abs=5e-4)
