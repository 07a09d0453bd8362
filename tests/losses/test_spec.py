"""Specs and the table of presets: what a row names, and what makes no sense."""

from __future__ import annotations

import re
from typing import Any

import pytest

from logitless.loss.spec import (
    KL,
    Aspo,
    Bapo,
    BoundedClip,
    Clip,
    ClipCov,
    Correction,
    CustomSurrogate,
    Dcpo,
    Dro,
    Entropic,
    EntropyAdvantage,
    EntropyBonus,
    EntropyRatioClip,
    EntropyWeights,
    Gmpo,
    KLCov,
    M2po,
    NoPolicy,
    PolicyLossSpec,
    Reinforce,
    Reject,
    RepoD,
    RepoR,
    SignWeights,
    Siren,
    Steer,
    TopEntropy,
    TrustMask,
    Vespo,
)
from logitless.loss.spec.corrections import corrections
from logitless.loss.spec.presets import TABLE, presets


def test_every_preset_names_its_paper_and_formula() -> None:
    assert len(presets) >= 38
    for row in TABLE.values():
        assert re.search(r"arXiv:\d{4}\.\d{5}|doi:", row.paper) and "-" in row.formula


def test_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(KeyError, match="did you mean 'clip_cov'"):
        presets["clipcov"]
    with pytest.raises(KeyError, match=r"no preset 'xyzzy'\. There are: "):
        presets["xyzzy"]
    assert presets.get("nothing") is None


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: PolicyLossSpec(max_length=5), ValueError, ["max_length=5", "'token-mean'"]),
        (
            lambda: PolicyLossSpec(surrogate=Clip(0.2, 0.2, 3.0), control=KLCov()),
            ValueError,
            ["control=KLCov", "surrogate=Clip"],
        ),
        (lambda: PolicyLossSpec(ratio="tokens"), ValueError, ["ratio", "'tokens'", "sequence"]),
        (lambda: PolicyLossSpec(correction="tis"), TypeError, ["correction", "'tis'"]),
        (lambda: PolicyLossSpec(aggregation="mean"), ValueError, ["aggregation", "'mean'"]),
        (lambda: PolicyLossSpec(surrogate=None), TypeError, ["surrogate", "None"]),
        (lambda: PolicyLossSpec(kl=0.1), TypeError, ["kl", "0.1"]),
        (
            lambda: PolicyLossSpec(aggregation="seq-mean-token-sum-norm", max_length=1.5),
            TypeError,
            ["max_length", "1.5"],
        ),
        (lambda: Clip(low=1.5), ValueError, ["Clip.low", "1.5", "[0, 1]"]),
        (lambda: Clip(high=-0.1), ValueError, ["Clip.high", "-0.1"]),
        (lambda: Clip(dual=1.0), ValueError, ["Clip.dual", "1.0"]),
        (lambda: BoundedClip(beta_low=-1.0), ValueError, ["BoundedClip.beta_low", "-1.0"]),
        (lambda: BoundedClip(beta_low=9, dual=2.0), ValueError, ["BoundedClip.beta_low", "2.0"]),
        (lambda: Dcpo(most=0.9), ValueError, ["Dcpo.most", "0.9"]),
        (lambda: Aspo(cap=1.0), ValueError, ["Aspo.cap", "1.0"]),
        (lambda: M2po(0.0), ValueError, ["M2po.budget", "0.0"]),
        (lambda: M2po(low=1.5), ValueError, ["M2po.low", "1.5", "[0, 1]"]),
        (lambda: Bapo(low_start=0.9), ValueError, ["Bapo.low_start", "0.9"]),
        (lambda: Bapo(high_end=1.1), ValueError, ["Bapo.high_end", "1.1"]),
        (lambda: Bapo(high_step=0.0), ValueError, ["Bapo.high_step", "0.0"]),
        (lambda: Bapo(dual=1.0), ValueError, ["Bapo.dual", "1.0"]),
        (lambda: EntropyAdvantage(kappa=0.5), ValueError, ["EntropyAdvantage.kappa", "0.5"]),
        (lambda: RepoR(float("nan")), ValueError, ["RepoR.zeta", "nan"]),
        (lambda: RepoD("1"), TypeError, ["RepoD.beta", "'1'"]),
        (lambda: EntropyRatioClip(low=1.0), ValueError, ["EntropyRatioClip.low", "1.0"]),
        (lambda: EntropyRatioClip(high=1.0), ValueError, ["EntropyRatioClip.high", "1.0"]),
        (lambda: Entropic(float("inf")), ValueError, ["Entropic.coefficient", "inf"]),
        (lambda: Entropic(threshold=1.0), ValueError, ["Entropic.threshold", "1.0", "(0, 1)"]),
        (lambda: Entropic(scope="rank"), ValueError, ["Entropic.scope", "'rank'"]),
        (lambda: Siren(-1.0), ValueError, ["Siren.coefficient", "-1.0"]),
        (lambda: Siren(anchor=-1.0), ValueError, ["Siren.anchor", "-1.0"]),
        (lambda: Siren(quantile=1.0), ValueError, ["Siren.quantile", "1.0", "[0, 1)"]),
        (lambda: Siren(scope="rank"), ValueError, ["Siren.scope", "'rank'"]),
        (lambda: Steer(0.0), ValueError, ["Steer.low", "0.0"]),
        (lambda: Steer(high=0.5), ValueError, ["Steer.high", "0.5", "low = 0.8"]),
        (lambda: Steer(floor=0.0), ValueError, ["Steer.floor", "0.0"]),
        (lambda: Steer(scope="rank"), ValueError, ["Steer.scope", "'rank'", "batch, micro"]),
        (lambda: Clip(low="a"), TypeError, ["Clip.low", "'a'"]),
        (lambda: ClipCov(fraction=0), ValueError, ["ClipCov.fraction", "0", "(0, 1]"]),
        (lambda: ClipCov(low=5, high=1), ValueError, ["ClipCov.low", "5", "high = 1"]),
        (lambda: KLCov(scope="rank"), ValueError, ["KLCov.scope", "'rank'", "batch, micro"]),
        (lambda: KLCov(coefficient=-1), ValueError, ["KLCov.coefficient", "-1"]),
        (lambda: TopEntropy(float("nan")), ValueError, ["TopEntropy.fraction", "nan"]),
        (lambda: EntropyWeights(floor=0.0), ValueError, ["EntropyWeights.floor", "0.0"]),
        (lambda: KL("k4"), ValueError, ["KL.estimator", "'k4'"]),
        (lambda: EntropyBonus(float("inf")), ValueError, ["EntropyBonus.coefficient", "inf"]),
        (lambda: Correction(high=0.0), ValueError, ["Correction.high", "0.0", "low = 0.0"]),
        (lambda: Reject("seq_k1"), ValueError, ["Reject.measure", "'seq_k1'", "seq_sum_k1"]),
    ],
)  # fmt: skip
def test_wrong_values_are_named(make: Any, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)


class Own(CustomSurrogate):
    """Never asked for its formula."""


NO_POLICY = {"ratio": "none", "surrogate": NoPolicy()}
VESPO = {"ratio": "sequence_sum", "surrogate": Vespo()}
NONSENSE: dict[str, tuple[Any, list[str]]] = {
    "length": ({"max_length": 5}, ["max_length=5", "aggregation='token-mean'"]),
    "no ratio": ({"ratio": "none"}, ["ratio='none'", "surrogate=Clip("]),
    "a ratio": ({"surrogate": Reinforce()}, ["ratio='token'", "surrogate=Reinforce()"]),
    "gmpo": ({"surrogate": Gmpo()}, ["ratio='token'", "surrogate=Gmpo("]),
    "vespo": ({"surrogate": Vespo(), "ratio": "sequence"}, ["ratio='sequence'", "Vespo("]),
    "trust": ({"surrogate": TrustMask(), "ratio": "sequence"}, ["'sequence'", "TrustMask("]),
    "dro": ({"surrogate": Dro(), "ratio": "sequence_token"}, ["'sequence_token'", "Dro("]),
    "own": ({"surrogate": Own(), "ratio": "sequence"}, ["ratio='sequence'", "surrogate=<"]),
    "twice": (
        {"ratio": "inference", "correction": corrections["tis"]},
        ["ratio='inference'", "correction=Correction("],
    ),
    "vespo twice": (VESPO | {"correction": corrections["tis"]}, ["Vespo(", "correction="]),
    "no term": (NO_POLICY, ["surrogate=NoPolicy()", "entropy=None"]),
    "control of none": (
        NO_POLICY | {"entropy": EntropyBonus(0.1), "control": SignWeights()},
        ["control=SignWeights(", "surrogate=NoPolicy()"],
    ),
    "correction of none": (
        NO_POLICY | {"entropy": EntropyBonus(0.1), "correction": corrections["tis"]},
        ["correction=Correction(", "surrogate=NoPolicy()"],
    ),
    "dual": (
        {"surrogate": Clip(dual=3.0), "control": KLCov()}, ["control=KLCov", "surrogate=Clip"]
    ),
    "bounded dual": (
        {"surrogate": BoundedClip(dual=3.0), "control": KLCov()}, ["KLCov", "surrogate=BoundedClip"]
    ),
    "dcpo": ({"surrogate": Dcpo(), "ratio": "sequence"}, ["ratio='sequence'", "Dcpo("]),
    "m2po": ({"surrogate": M2po(), "ratio": "sequence"}, ["ratio='sequence'", "M2po("]),
    "bapo": ({"surrogate": Bapo(), "control": KLCov()}, ["control=KLCov(", "Bapo("]),
    "clip of a batch": (
        {"surrogate": M2po(), "control": ClipCov()}, ["control=ClipCov(", "surrogate=M2po("]
    ),
    "aspo": ({"surrogate": Aspo(), "ratio": "sequence"}, ["ratio='sequence'", "Aspo("]),
    "tokens of a sequence": (
        {"ratio": "sequence", "control": KLCov()}, ["control=KLCov(", "ratio='sequence'"]
    ),
    "entropic": (
        {"control": Entropic(), "aggregation": "token-sum"},
        ["control=Entropic(coefficient=0.0", "aggregation='token-sum'", "a mean over tokens"],
    ),
    "normaliser": (
        {"control": TopEntropy(normaliser="selected"), "aggregation": "seq-mean-token-mean"},
        ["control.normaliser='selected'", "aggregation='seq-mean-token-mean'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fields, words", NONSENSE.values(), ids=NONSENSE)
def test_combinations_that_make_no_sense_name_both_fields(
    fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ValueError, match="makes no sense with") as caught:
        PolicyLossSpec(**fields)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: TopEntropy(normaliser="selected", scope="micro"), ["'selected'", "'micro'"]),
        (lambda: Reject("token_k2", 1.0, 0.5), ["Reject.low=0.5", "'token_k2'"]),
        (lambda: Correction(None), ["level=None", "reject=()", "veto=None"]),
        (lambda: Correction(None, veto=1e-4, normalize=True), ["normalize=True", "level=None"]),
    ],
)
def test_parts_that_make_no_sense(make: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match="makes no sense with") as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)
