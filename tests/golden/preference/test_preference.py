"""TRL's own DPO losses, replayed: where we agree, and where we differ on purpose.

tests/golden/preference/make_preference.py wrote the file from the real package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitless as ll

torch = pytest.importorskip("torch")
GOLDEN = json.loads(Path(__file__).with_name("preference.json").read_text())
LOGP, REF = (
    torch.tensor(GOLDEN["inputs"][name], dtype=torch.float64) for name in ("logp", "ref_logp")
)
MASK, LOSSES = torch.tensor(GOLDEN["inputs"]["mask"]), GOLDEN["losses"]
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
# TRL's name -> our options.
SAME: dict[str, dict[str, Any]] = {
    **{name: {"form": name} for name in ("sigmoid", "hinge", "nca_pair", "bco_pair", "sppo_hard")},
    **{name: {"form": name} for name in ("apo_zero", "apo_down", "discopop")},
    "exo_pair": {"form": "exo_pair", "label_smoothing": 1e-3},
    **{n: {"form": n, "label_smoothing": 0.1} for n in ("robust", "aot", "aot_unpaired")},
    "ipo": {"form": "ipo", "average": True},
    "sigmoid_norm": {"average": True},
    "hinge.beta": {"form": "hinge", "beta": 0.9},
    "sigmoid.forward_kl": {"divergence": "forward_kl", "beta": 0.5},
    "sigmoid.js_divergence": {"divergence": "js_divergence", "beta": 0.5},
    "sigmoid.alpha_divergence": {"divergence": "alpha_divergence", "beta": 0.5},
}
# what TRL computes in float32, or through it
ROUNDED = {"sigmoid.alpha_divergence": 2e-6, "exo_pair": 1e-6}


def sequences(logp: Any, average: bool) -> tuple[Any, Any]:
    chosen, rejected = ll.sequence_logp(logp, MASK, average=average).chunk(2)
    return chosen, rejected


def dpo(logp: Any, *, average: bool = False, **options: Any) -> Any:
    pairs = (*sequences(logp, average), *sequences(REF, average))
    return ll.preference.dpo(*pairs, **options).mean()


@pytest.mark.parametrize("name", SAME)
def test_losses_and_gradients(name: str) -> None:
    logp = LOGP.clone().requires_grad_()
    loss = dpo(logp, **SAME[name])
    loss.backward()
    close = {"rtol": ROUNDED[name], "atol": ROUNDED[name]} if name in ROUNDED else CLOSE
    np.testing.assert_allclose(loss.item(), LOSSES[name]["loss"], **close)
    np.testing.assert_allclose(logp.grad.numpy(), LOSSES[name]["g_logp"], **close)


def test_sft_is_the_mean_over_the_tokens_of_chosen_answers() -> None:
    chosen = ll.sequence_logp(LOGP, MASK).chunk(2)[0]
    loss = -chosen.sum() / MASK.chunk(2)[0].sum()
    np.testing.assert_allclose(loss, LOSSES["sft"]["loss"], **CLOSE)


def test_sigmoid_takes_no_notice_of_label_smoothing_there() -> None:
    """A difference we mean: cDPO is the sigmoid form with label_smoothing."""
    assert LOSSES["sigmoid.smoothing_ignored"] == LOSSES["sigmoid"]
    plain, flipped = dpo(LOGP, form="robust"), dpo(LOGP, form="sigmoid", label_smoothing=0.1)
    assert plain.item() == pytest.approx(LOSSES["sigmoid"]["loss"], rel=1e-12)
    # robust's is (1 - e) right - e wrong over 1 - 2 e, cDPO's (1 - e) right + e wrong
    right, robust = LOSSES["sigmoid"]["loss"], LOSSES["robust"]["loss"]
    wrong = (0.9 * right - 0.8 * robust) / 0.1
    assert flipped.item() == pytest.approx(0.9 * right + 0.1 * wrong, rel=1e-10)


def test_every_number_is_replayed() -> None:
    assert set(LOSSES) == set(SAME) | {"sft", "sigmoid.smoothing_ignored"}
    assert {name.split(".")[0] for name in SAME} == set(ll.preference.FORMS) | {"sigmoid_norm"}
