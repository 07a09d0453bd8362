"""The entropy change on some of the answers: which, how far off, and what of it is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np  # noqa: E402

from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.engine import LocalEngine  # noqa: E402
from logitless.rl.policy import Policy, make_policy  # noqa: E402
from logitless.rl.rollout import Cut, Rollout, hidden_states, sample  # noqa: E402
from logitless.rl.tracking import metrics  # noqa: E402
from logitless.rl.tracking.stopwatch import Stopwatch  # noqa: E402
from logitless.rl.update import EntropyProbe  # noqa: E402
from logitless.rl.update.entropy_probe import spaced, standard_error  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402

ANSWERS = 64


@pytest.mark.parametrize(
    ("answers", "share", "places"),
    [
        (8, 0.25, [0, 4]),
        (8, 0.5, [0, 2, 4, 6]),
        (8, 1.0, list(range(8))),
        (7, 0.3, [0, 2, 4]),
        # a standard error takes two
        (8, 0.01, [0, 4]),
        (1, 0.5, [0]),
    ],
)
def test_a_share_is_in_even_steps(answers: int, share: float, places: list[int]) -> None:
    assert spaced(answers, share, "cpu").tolist() == places


def test_the_standard_error_is_the_spread_of_such_samples() -> None:
    """Of random samples without replacement: their changes per token lie about that far from that
    of all, and its estimates are right on average."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, size=400)
    changes = lengths * (rng.normal(size=400) * 0.1 - 0.05) + rng.normal(size=400)
    exact = changes.sum() / lengths.sum()
    off, estimates = [], []
    for _ in range(2000):
        some = rng.choice(400, size=100, replace=False)
        off.append(changes[some].sum() / lengths[some].sum() - exact)
        estimates.append(standard_error(changes[some].tolist(), lengths[some].tolist(), 400))
    spread = math.sqrt(np.mean(np.square(off)))
    assert np.mean(estimates) == pytest.approx(spread, rel=0.1)
    assert standard_error(changes.tolist(), lengths.tolist(), 400) == 0.0


@pytest.fixture
def started(tmp_path: Path) -> tuple[LocalEngine, Rollout]:
    recipe = tiny_recipe(tmp_path)
    policy = make_policy(recipe.model, recipe.seed)
    with torch.no_grad():
        policy.weight.mul_(20.0)
    rollout = sample(
        policy, policy.encode(["sum 8:", "sum 10:"]), group=ANSWERS // 2, max_new_tokens=6,
        temperature=1.0, seed=0, step=0, clock=Stopwatch(),
    )  # fmt: skip
    return LocalEngine(policy, recipe.update), rollout


def entropies(policy: Policy, rollout: Rollout) -> tuple[Any, Any]:
    """Of each answer the sum over its tokens, from the whole softmax, and the number of these."""
    with torch.no_grad():
        logits = (hidden_states(policy, rollout) @ policy.weight.T).double()
        logits += policy.head_options["bias"] if policy.padding is not None else 0.0
        logp = logits.log_softmax(dim=1)
        each = -torch.nan_to_num(logp.exp() * logp).sum(dim=1)
    ends = np.cumsum(rollout.lengths.numpy())[:-1]
    return np.array([x.sum() for x in np.split(each.numpy(), ends)]), rollout.lengths.numpy()


@pytest.mark.parametrize("cut", [Cut(4), Cut(tokens=40)])
def test_what_a_share_measures_is_of_its_own_answers(
    started: tuple[LocalEngine, Rollout], cut: Cut
) -> None:
    engine, rollout = started
    some = rollout.sequences(spaced(ANSWERS, 0.25, "cpu"))
    whole = entropies(engine.policy, rollout)[0]
    before, lengths = entropies(engine.policy, some)
    weights = engine.policy.weight.detach().clone()
    probe = EntropyProbe(engine, rollout, 1.0, cut, share=0.25)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        engine.policy.weight.add_(1e-3 * torch.randn(weights.shape, generator=generator))
    found = probe.change()
    changes = entropies(engine.policy, some)[0] - before
    assert found.measured == pytest.approx(changes.sum() / lengths.sum(), rel=1e-3)
    assert found.predicted == pytest.approx(found.measured, rel=0.1)
    mean = changes.sum() / lengths.sum()
    variance = np.sum((changes - mean * lengths) ** 2) / (len(lengths) - 1)
    # 16 of 64 answers
    error = math.sqrt(16 * variance * (1 - 16 / 64)) / lengths.sum()
    assert found.standard_error == pytest.approx(error, rel=1e-3)
    after = entropies(engine.policy, rollout)
    exact = (after[0] - whole).sum() / after[1].sum()
    assert 0 < abs(exact - found.measured) < 3 * found.standard_error

    with torch.no_grad():
        engine.policy.weight.copy_(weights)
    everything = EntropyProbe(engine, rollout, 1.0, cut)
    with torch.no_grad():
        generator.manual_seed(0)
        engine.policy.weight.add_(1e-3 * torch.randn(weights.shape, generator=generator))
    change = everything.change()
    assert change.measured == pytest.approx(exact, rel=1e-3) and change.standard_error == 0.0


def test_a_run_is_the_same_whatever_is_probed(tmp_path: Path) -> None:
    options = ("steps=2", "compare_repeats=0", "methods={grpo: {preset: grpo}}")
    rows = {}
    for share in (0.25, 1.0):
        more = ("entropy_change_every=1", f"entropy_change_share={share}")
        out = tmp_path / f"share{share}"
        assert run(tiny_recipe(tmp_path, *options, *more), out) == 0
        rows[share] = metrics.read(out / "grpo" / metrics.FILE)
    assert min(row["entropy_change_error"] for row in rows[0.25]) > 0.0
    assert [row["entropy_change_error"] for row in rows[1.0]] == [0.0, 0.0]
    for some, whole in zip(rows[0.25], rows[1.0], strict=True):
        assert some["entropy_change"] != whole["entropy_change"]
        for key in ("reward", "entropy", "grad_norm", "actor/pg_loss"):
            assert some[key] == whole[key]
