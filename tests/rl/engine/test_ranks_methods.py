"""What a method can have beside its loss is on two ranks what it is in one process: controllers,
entropies of the likeliest tokens, truncated rollouts, adapters; and so is `logitless eval`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from logitless.cli import main  # noqa: E402
from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.recipe import Recipe  # noqa: E402
from logitless.rl.tracking import checkpoint, metrics  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402
from tests.support.rl.runs_alike import assert_alike, half_way, home_in  # noqa: E402
from tests.support.workers import torchrun  # noqa: E402
from tests.support.workers.ranks import run_ranks  # noqa: E402

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch without gloo"
)

METHODS: dict[str, dict[str, Any]] = {
    "pi": {
        "preset": "entropic",
        "change": {"control": {"threshold": 0.01}},
        "controller": {"kind": "pi", "options": {"target": 1.4, "ki": 0.1}},
    },
    "bonus": {
        "preset": "grpo",
        "change": {"entropy": {"coefficient": 0.01}, "kl": {"coefficient": 0.1}},
        "controller": {"kind": "log", "options": {"target": 1.0}},
    },
    "repo": {"preset": "repo_r", "controller": {"kind": "repo", "options": {"target": 9.0}}},
    "siren": {"preset": "siren", "entropy_top_p": 0.8, "controller": {"kind": "anchor"}},
    "steer": {"preset": "steer"},
}
# Prompts and sequences are no multiple of two.
SIZES = (
    "compare_repeats=0", "rollout.prompts=5", "rollout.group=7", "update.minibatches=3",
    "update.micro_batches=2", "evaluation.every=2", "evaluation.group=3", "evaluation.prompts=5",
)  # fmt: skip
CONTROLLED = (*SIZES, f"methods={json.dumps(METHODS)}", "reference={kind: anchor, every: 2}")
TRUNCATED = (
    *SIZES, "rollout.top_p=0.9", "update.epochs=2", "model.share_prompts=true",
    "update.gradient_checkpointing=true",
)  # fmt: skip
LORA = (
    *SIZES, "warmup.steps=0", "warmup.full_steps=0", "lora.rank=4",
    "lora.targets=[all-linear, lm_head]", "update.body_lr=3e-4", "update.head_lr=3e-4",
    "methods={grpo: {preset: grpo, change: {kl: {coefficient: 0.1}}}}",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with home_in(tmp_path_factory.mktemp("ranks")) as folder:
        yield folder


def on_two(home: Path, out: str, *options: str) -> Path:
    done = torchrun.forked(2, "train", "tiny.yaml", *options, "--out", out, folder=home)
    assert done.returncode == 0, done.stderr
    return home / out


def recipe(home: Path, options: tuple[str, ...]) -> Recipe:
    return tiny_recipe(home, *options)


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    assert run(recipe(home, CONTROLLED), home / "alone") == 0
    return home / "alone"


@pytest.fixture(scope="module")
def pair(home: Path) -> Path:
    return on_two(home, "pair", *CONTROLLED)


def test_controllers_follow_the_whole_batch(pair: Path, alone: Path) -> None:
    assert_alike(pair, alone, list(METHODS))
    for method, wanted in METHODS.items():
        rows = metrics.read(pair / method / metrics.FILE)
        assert ("actor/controlled" in rows[0]) == ("controller" in wanted)
    for method in ("pi", "bonus", "repo"):
        rows = metrics.read(pair / method / metrics.FILE)
        assert len({row["actor/controlled"] for row in rows}) > 1, method


def test_controllers_go_on_with_another_number_of_ranks(
    home: Path, pair: Path, alone: Path
) -> None:
    two = on_two(home, half_way(alone, home / "then_two", list(METHODS)), *CONTROLLED, "--resume")
    assert_alike(two, alone, list(METHODS))
    one = home / half_way(pair, home / "then_one", list(METHODS))
    assert run(recipe(home, CONTROLLED), one, resume=True) == 0
    assert_alike(one, alone, list(METHODS))


def test_all_ranks_hold_the_same_state_bit_for_bit(home: Path, tmp_path: Path) -> None:
    more = [str(home / "tiny.yaml"), str(tmp_path / "run"), *CONTROLLED]
    store = str(tmp_path / "store")
    run_ranks("rl.rank_states", [[str(rank), "2", store, *more] for rank in range(2)], 600)


def test_truncated_rollouts_and_shared_prompts(home: Path) -> None:
    assert run(recipe(home, TRUNCATED), home / "truncated") == 0
    pair = on_two(home, "truncated_pair", *TRUNCATED)
    assert_alike(pair, home / "truncated", ["grpo", "clip_cov"])


def test_adapters_are_those_of_one_process(home: Path) -> None:
    pytest.importorskip("peft", reason="adapters are peft's")
    base = checkpoint.latest(home / "alone" / "warmup")
    if base is None:
        assert run(recipe(home, (*SIZES, "steps=1")), home / "alone") == 0
        base = checkpoint.latest(home / "alone" / "warmup")
    options, methods = (*LORA, f"model={{path: {base}}}"), ["grpo"]
    assert run(recipe(home, options), home / "adapters") == 0
    pair = on_two(home, "adapters_pair", *options)
    assert_alike(pair, home / "adapters", methods)
    saved = checkpoint.latest(pair / "grpo")
    assert saved is not None and not (saved / "model.safetensors").exists()
    assert metrics.read(pair / "grpo" / metrics.FILE)[3]["actor/kl_loss"] > 0
    # and with another number of ranks
    one = home / half_way(pair, home / "adapters_then_one", methods)
    assert run(recipe(home, options), one, resume=True) == 0
    assert_alike(one, home / "adapters", methods)
    half = half_way(home / "adapters", home / "adapters_then_two", methods)
    assert_alike(on_two(home, half, *options, "--resume"), home / "adapters", methods)


def test_an_evaluation_has_the_work_of_all_ranks(
    home: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["eval", str(alone / "pi")]) == 0
    expected = capsys.readouterr().out
    done = torchrun.forked(2, "eval", alone / "pi", folder=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected and "pi after 4 steps" in expected
    refused = torchrun.forked(2, "eval", alone / "pi", "evaluation.prompts=1", folder=home)
    message = "recipe key 'evaluation.prompts' must be at least 2, a prompt for each rank, got 1"
    assert refused.returncode != 0 and refused.stderr.count(message) == 1
