"""Losses that look at all of an optimizer batch, in verl's micro-batches; and one pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import logitless as ll
from tests.plugins.verl.cases import CASES
from tests.plugins.verl.engines import (
    actor_config,
    data,
    distance,
    engine,
    off_policy,
    save_model,
    scored,
    step,
)
from tests.plugins.verl.setting import ours

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def trio(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    folder = save_model(tmp_path_factory.mktemp("model"), tie_word_embeddings=request.param)
    theirs, mine = engine(folder, None), engine(folder, "logitless")
    td = data()
    return theirs, mine, off_policy(td, scored(theirs, td)["log_probs"])


LOOSE = {
    "clip_cov": replace(
        ll.presets["clip_cov"], control=ll.ClipCov(fraction=0.2, low=0.05, high=50.0)
    ),
    "kl_cov": replace(ll.presets["kl_cov"], control=ll.KLCov(fraction=0.1, coefficient=1.0)),
    "top_entropy": ll.presets["top_entropy"],
    "clip_b": replace(ll.presets["clip_b"], control=ll.ClipB(0.3)),
    "tea": ll.presets["tea"],
    "entropic": replace(ll.presets["entropic"], control=ll.Entropic(0.5, 1e-4)),
    "siren": replace(ll.presets["grpo"], entropy=ll.Siren(0.5, 1.0)),
}


@pytest.mark.parametrize("name", LOOSE)
def test_micro_batches_change_nothing(name: str, trio: Any) -> None:
    _, mine, td = trio
    ours.register("loose", LOOSE[name])
    found = []
    for micro_batches in (1, 4):
        mine._steps = 0
        found.append(step(mine, td, actor_config("logitless/loose"), micro_batches))
    one, four = found
    assert four.loss == pytest.approx(one.loss, abs=1e-6)
    assert distance(one, four) <= 1e-5
    # It does select, or hold the entropy.
    everything = replace(LOOSE[name], control=None, entropy=None)
    ours.register("loose", everything)
    assert distance(one, step(mine, td, actor_config("logitless/loose"))) > 1e-2


@pytest.mark.parametrize("mode", ["clip_cov", "kl_cov"])
def test_they_change_verls_own(mode: str, trio: Any) -> None:
    theirs, _, td = trio
    options = {
        "clip_cov": {"clip_cov_ratio": 0.2, "clip_cov_lb": 0.05, "clip_cov_ub": 50.0},
        "kl_cov": {"kl_cov_ratio": 0.1, "ppo_kl_coef": 1.0},
    }[mode]
    one, four = (step(theirs, td, actor_config(mode, **options), n) for n in (1, 4))
    assert distance(one, four) > 0.05


@pytest.mark.parametrize("name", ["kl_cov", "clip_cov, all of them"])
def test_one_micro_batch_selects_as_verl(name: str, trio: Any) -> None:
    theirs, mine, td = trio
    case = CASES[name]
    ours.register("case", case.spec)
    a = step(theirs, td, actor_config(case.mode, **case.options))
    b = step(mine, td, actor_config("logitless/case"))
    assert b.loss == pytest.approx(a.loss, abs=1e-6)
    assert distance(a, b) <= 1e-5


# In one pass, and not: verl's own entropy term asks for the entropy's gradient.
@pytest.mark.parametrize("more", [{}, {"entropy_coeff": 0.01}, {"use_kl_loss": True}])
@pytest.mark.parametrize(
    "name", ["vanilla, token-mean", "vanilla, seq-mean-token-mean", "gspo", "sapo", "cispo"]
)
def test_an_optimizer_step_is_verls(
    name: str, more: dict[str, Any], trio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, mine, td = trio
    case = CASES[name]
    ours.register("case", case.spec)
    calls = []
    own = ll.linear_policy_loss

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return own(*arguments, **options)

    monkeypatch.setattr(ll, "linear_policy_loss", counted)
    mode = {} if name == "sapo" else {"loss_agg_mode": case.spec.aggregation}
    theirs_config = actor_config(case.mode, **{**case.options, **mode, **more})
    a = step(theirs, td, theirs_config, 2)
    b = step(mine, td, actor_config("logitless/case", **mode, **more), 2)
    assert len(calls) == (0 if more else 2)
    assert b.loss == pytest.approx(a.loss, abs=2e-6)
    assert distance(a, b) <= 1e-5
    for metric in (a.metrics.keys() & b.metrics.keys()) - set(case.other):
        assert b.metrics[metric] == pytest.approx(a.metrics[metric], abs=1e-5), metric


def test_rollout_weights_in_one_pass(trio: Any) -> None:
    theirs, mine, td = trio
    td = td.clone(recurse=False)
    td["rollout_is_weights"] = torch.rand(td["noise"].shape) + 0.5
    a = step(theirs, td, actor_config("vanilla"), 2)
    b = step(mine, td, actor_config("logitless/ppo_dual_clip"), 2)
    assert distance(a, b) <= 1e-5


@pytest.mark.parametrize("name", ["prime_rl", "ipo", "entropy_only"])
def test_losses_that_look_at_more_than_verl_hands_over(name: str, trio: Any) -> None:
    """The same with the head in one pass, and by verl's logits."""
    theirs, mine, td = trio
    found = [step(x, td, actor_config(f"logitless/{name}"), 2) for x in (theirs, mine)]
    assert found[1].loss == pytest.approx(found[0].loss, abs=2e-6)
    assert distance(*found) <= 1e-5


def test_a_field_that_the_batch_has_not(trio: Any) -> None:
    _, mine, td = trio
    td = td.clone(recurse=False)
    td.pop("rollout_log_probs")
    with pytest.raises(ValueError, match="rollout_logp"):
        step(mine, td, actor_config("logitless/prime_rl"))


def test_as_many_sequences_as_a_response_has_tokens(trio: Any) -> None:
    """Nothing takes one for the other."""
    theirs, mine, _ = trio
    td = data(rows=18)
    assert len(td["responses"]) == 2 * td["responses"].shape[1]
    td = off_policy(td, scored(theirs, td)["log_probs"])
    ours.register("loose", LOOSE["clip_cov"])
    found = []
    for micro_batches in (1, 2):
        # which tokens are drawn depends on it
        mine._steps = 0
        found.append(step(mine, td, actor_config("logitless/loose"), micro_batches))
    assert distance(*found) <= 1e-5
