"""The study of what a logit costs: its measures, and this library's errors on real states."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.studies import real_states as study  # noqa: E402
from tests.support.rl.smollm2 import needs_smollm2  # noqa: E402

FLOAT32 = ("this library, float32", "this library, bfloat16, logits_dtype=float32")


def random_states() -> study.States:
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 16, generator=g), torch.randn(2000, 16, generator=g)
    drawn = torch.multinomial((hidden @ weight.T / 0.7).softmax(-1), 1, generator=g)[:, 0]
    return study.States(hidden, weight, drawn, temperature=0.7)


def check(table: dict[str, dict[str, float]]) -> None:
    # the seventh digit of a log-prob of a few nats, a few times over
    for name in FLOAT32:
        assert table[name]["logp, largest"] <= 1e-4
        assert table[name]["entropy, largest"] <= 1e-4
    bfloat16, plain = table["this library, bfloat16"], table["plain torch, bfloat16 logits"]
    assert bfloat16["logp, mean"] <= 1.1 * plain["logp, mean"]


def test_on_random_states() -> None:
    x = random_states()
    check(study.table(x))
    rows = study.tails(x)
    assert rows["tokens"] == 40
    share = [rows[f"{n} entries leave at most 0.01"] for n in (64, 512)]
    assert 0 <= share[0] <= share[1] <= 1


def test_what_a_trainer_sees() -> None:
    """By hand: one token of two is 0.3 too likely."""
    truth = {"logp": torch.tensor([-1.0, -2.0]), "entropy": torch.zeros(2)}
    found = {"logp": torch.tensor([-0.7, -2.0]), "entropy": torch.tensor([0.5, 0.0])}
    off = study.errors(found, {k: v.double() for k, v in truth.items()})
    ratio = 1.3498588
    expected = {
        "logp, largest": 0.3, "logp, mean": 0.15, "entropy, largest": 0.5, "entropy, mean": 0.25,
        "ratio, mean off 1": (ratio - 1) / 2, "beyond the clip": 0.5, "k1": -0.15,
        "k3": (ratio - 1.3) / 2,
    }  # fmt: skip
    assert off == pytest.approx(expected, rel=1e-6)


@needs_smollm2
def test_on_real_states() -> None:
    for temperature in study.TEMPERATURES:
        check(study.table(study.sampled(temperature, tokens=12)))
