"""Losses in verl's table against verl's own: values, gradients, metrics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import logitless as ll
from tests.plugins.verl.cases import CASES
from tests.plugins.verl.setting import actor_config, away, core_algos, made, ours, outcome

pytestmark = pytest.mark.filterwarnings("ignore")


# verl's geo_mean reduces the weights of a sequence, and takes each micro-batch for a batch.
WAYS = [
    (name, parts, weights)
    for name, case in CASES.items()
    for parts in (1, 3)
    for weights in (False, True)
    if case.mode != "geo_mean" or (parts == 1 and not weights)
]


@pytest.mark.parametrize(("name", "parts", "weights"), WAYS)
def test_a_loss_is_verls(name: str, parts: int, weights: bool) -> None:
    case = CASES[name]
    ours.register("case", case.spec)
    batch = made()
    theirs = outcome(actor_config(case.mode, **case.options), batch, parts, weights=weights)
    mine = outcome(actor_config("logitless/case"), batch, parts, weights=weights)
    assert mine.loss == pytest.approx(theirs.loss, rel=1e-5, abs=1e-6)
    assert away(theirs.gradient, mine.gradient) <= 5e-6
    for metric in theirs.metrics.keys() - set(case.other):
        assert mine.metrics[metric] == pytest.approx(theirs.metrics[metric], abs=1e-6), metric


def test_every_preset_has_a_name_but_those_that_verl_has_no_inputs_for() -> None:
    names = {x.removeprefix("logitless/") for x in core_algos.POLICY_LOSS_REGISTRY if "/" in x}
    assert ll.presets.keys() - names == {"clip_v", "erc"}


@pytest.mark.parametrize("name", [k for k, x in ll.presets.items() if x.needs <= {"old_logp"}])
def test_presets_under_their_names(name: str) -> None:
    batch = made()
    found = outcome(actor_config(f"logitless/{name}"), batch)
    spec = ll.presets[name]
    if spec.selects:
        assert spec.control is not None
        spec = replace(spec, control=replace(spec.control, scope="micro"))  # type: ignore[type-var]
    logp = batch.logp.clone().requires_grad_()
    torch.manual_seed(5)
    plain = ll.policy_loss(logp, batch.old_logp, batch.advantages, batch.mask, spec)
    plain.loss.backward()
    assert away(logp.grad, found.gradient) <= 2e-6
    assert found.metrics["actor/ppo_kl"] == pytest.approx(
        plain.metrics["actor/ppo_kl"].item(), abs=1e-6
    )


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"clip_ratio_high": 0.28}, "clip_ratio_high=0.28"),
        ({"clip_cov_ratio": 0.1}, "clip_cov_ratio=0.1"),
        ({"loss_agg_mode": "seq-mean-token-sum"}, "loss_agg_mode='seq-mean-token-sum'"),
    ],
)
def test_numbers_that_the_name_contradicts(options: dict[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        outcome(actor_config("logitless/ppo", **options), made())


def test_inputs_that_an_engine_must_hand_over() -> None:
    with pytest.raises(ValueError, match="rollout_logp"):
        outcome(actor_config("logitless/prime_rl"), made())
    with pytest.raises(ValueError, match="entropy_change"):
        ours.register("mine", ll.presets["clip_v"])
