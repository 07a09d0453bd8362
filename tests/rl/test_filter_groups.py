"""Groups whose rewards are all equal have no place in a batch: further rounds fill it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from logitless.cli import main  # noqa: E402
from logitless.rl.answer_rows import answer_rows  # noqa: E402
from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.experience import TooFewGroups, collect, describe, fates_of  # noqa: E402
from logitless.rl.policy import make_policy  # noqa: E402
from logitless.rl.recipe import Recipe  # noqa: E402
from logitless.rl.tasks import Prompt, Scores  # noqa: E402
from logitless.rl.tracking import checkpoint, completions, metrics  # noqa: E402
from logitless.rl.tracking.stopwatch import Stopwatch  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402
from tests.support.rl.runs_alike import assert_alike, half_way, home_in  # noqa: E402
from tests.support.workers import torchrun  # noqa: E402

EQUAL, NONE, SURPLUS = "equal rewards", "no reward", "surplus"


class Numbered:
    """Prompts 0, 1, 2, ... of a step, whose answers get what `rewards` says of their prompt."""

    def __init__(self, rewards: list[list[float]]) -> None:
        self.known, self.asked = rewards, 0

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        rng.random()
        first, self.asked = self.asked, self.asked + n
        return [Prompt(f"prompt {i}:", i) for i in range(first, first + n)]

    def reward(self, prompt: Prompt, completion: str) -> float:
        raise AssertionError("all at once")

    def rewards(self, prompts: list[Prompt], completions: list[str]) -> list[float]:
        group = len(self.known[0])
        return [self.known[prompt.data][i % group] for i, prompt in enumerate(prompts)]


NAN = float("nan")
SIX = [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.25, NAN], [2.0, -1.0], [0.5, 0.25]]


def small(folder: Path, *more: str) -> Recipe:
    return tiny_recipe(
        folder, "rollout={prompts: 2, group: 2, max_new_tokens: 3}", "update.minibatches=1",
        "compare_repeats=0", "warmup.steps=0", "warmup.full_steps=0", *more,
    )  # fmt: skip


def test_the_first_that_differ_have_the_places() -> None:
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.1, 0.1 + 1e-7], [2.0, 0.0]])
    scores = Scores(rewards, torch.tensor([True, True, False, True, True]), [])
    assert fates_of(scores, 2) == [EQUAL, None, NONE, None, SURPLUS]
    assert fates_of(scores, 9) == [EQUAL, None, NONE, None, None]
    # without a filter all that have a reward
    assert fates_of(scores, None) == [None, None, NONE, None, None]


def test_rounds_go_on_until_the_batch_is_full(tmp_path: Path) -> None:
    recipe = small(tmp_path, "rollout.filter_groups=true")
    policy, clock = make_policy(recipe.model, 0), Stopwatch()
    found = collect(policy, Numbered(SIX), recipe, "group_mean", 3, clock)
    assert found.sampled.fates == [EQUAL, None, EQUAL, NONE, None, SURPLUS]
    assert found.sampled.rounds == 3
    assert found.rewards.tolist() == [[0.0, 1.0], [2.0, -1.0]]
    assert found.advantages.tolist() == [-0.5, 0.5, 1.5, -1.5]
    assert len(found.rollout.mask) == 4 and "must be finite" in found.failures[0]

    row = describe(found, right=1.0)
    assert row["train/num_gen_batches"] == 3
    assert row["filtered_groups"] == 3 / 6 and row["surplus_groups"] == 1 / 6
    # of the five groups that have rewards
    assert row["zero_spread"] == pytest.approx(2 / 5) and row["skipped_prompts"] == 1
    assert row["reward"] == pytest.approx((2 + 1 + 0 + 1 + 0.75) / 10)
    assert row["tokens"] == int(found.rollout.mask.sum())

    lines = answer_rows(found, 3, 1, str, torch.zeros_like(found.rollout.mask))
    assert [line["prompt"] for line in lines[::2]] == [f"prompt {i}:" for i in range(6)]
    assert [line.get("dropped") for line in lines[::2]] == found.sampled.fates
    assert [line["advantage"] for line in lines] == [
        None, None, -0.5, 0.5, None, None, None, None, 1.5, -1.5, None, None
    ]  # fmt: skip
    assert [line["reward"] for line in lines[4:8]] == [0.0, 0.0, None, None]
    assert [i for i, line in enumerate(lines) if "pieces" in line] == [3]
    assert json.loads(json.dumps(lines, allow_nan=False)) == lines


def test_dropped_answers_have_their_share_of_the_time(tmp_path: Path) -> None:
    recipe = small(tmp_path, "rollout.filter_groups=true")
    policy, clock = make_policy(recipe.model, 0), Stopwatch()
    found = collect(policy, Numbered(SIX), recipe, "group_mean", 3, clock)
    share = 1 - int(found.rollout.mask.sum()) / int(found.sampled.answers.rollout.mask.sum())
    assert 0 < share < 1
    assert clock.seconds["dropped answers"] / sum(clock.seconds.values()) == pytest.approx(share)
    clock = Stopwatch()
    collect(policy, Numbered(SIX[4:]), small(tmp_path), "group_mean", 3, clock)
    assert set(clock.seconds) == {"rollout body", "rollout head", "reward"}


def test_a_round_can_have_more_prompts_than_the_batch(tmp_path: Path) -> None:
    recipe = small(tmp_path, "rollout.filter_groups=true", "rollout.oversample=1.6")
    task = Numbered([*SIX, [0.0, 1.0], [1.0, 1.0]])
    found = collect(make_policy(recipe.model, 0), task, recipe, "group_mean", 3, Stopwatch())
    assert found.sampled.rounds == 2 and task.asked == 8
    assert found.sampled.fates == [EQUAL, None, EQUAL, NONE, None, SURPLUS, SURPLUS, EQUAL]


@pytest.mark.parametrize(
    ("prompts", "oversample", "expected"), [(8, 1, 8), (8, 1.5, 12), (10, 1.1, 11), (3, 1.01, 4)]
)
def test_prompts_of_a_round(tmp_path: Path, prompts: int, oversample: float, expected: int) -> None:
    more = (f"rollout.prompts={prompts}", f"rollout.oversample={oversample}")
    recipe = tiny_recipe(tmp_path, "rollout.filter_groups=true", "rollout.group=8", *more)
    assert recipe.rollout.prompts_at_once == expected


def test_draws_are_those_of_one_large_round(tmp_path: Path) -> None:
    """Two rounds of two prompts, and one of four: the noise is that of the answer's number."""
    two = small(tmp_path, "rollout.filter_groups=true")
    one = small(tmp_path, "rollout.filter_groups=true", "rollout.oversample=2")
    policy = make_policy(two.model, 0)
    rewards = [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    first, second = (
        collect(policy, Numbered(rewards), recipe, "group_mean", 5, Stopwatch())
        for recipe in (two, one)
    )
    assert (first.sampled.rounds, second.sampled.rounds) == (2, 1)
    assert first.sampled.answers.texts == second.sampled.answers.texts
    assert torch.equal(first.rollout.targets, second.rollout.targets)


def test_truncated_rounds_keep_their_sets(tmp_path: Path) -> None:
    recipe = small(tmp_path, "rollout.filter_groups=true", "rollout.top_k=3")
    policy = make_policy(recipe.model, 0)
    found = collect(policy, Numbered(SIX), recipe, "group_mean", 3, Stopwatch())
    sets = found.rollout.kept.lists()
    assert len(sets) == len(found.rollout.targets)
    for token, kept in zip(found.rollout.targets.tolist(), sets, strict=True):
        assert token in kept and len(kept) == 3


def test_too_few_groups_are_no_batch(tmp_path: Path) -> None:
    recipe = small(tmp_path, "rollout.filter_groups=true", "rollout.max_rounds=2")
    message = (
        r"step 4: 1 of 4 groups have rewards that differ, and a batch has 2: recipe key "
        r"'rollout.max_rounds' is 2"
    )
    policy = make_policy(recipe.model, 0)
    with pytest.raises(TooFewGroups, match=message):
        collect(policy, Numbered(SIX), recipe, "group_mean", 3, Stopwatch())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("rollout.oversample=1.5",), r"need rollout.filter_groups=true, got 1.5 and 10 without"),
        (("rollout.max_rounds=3",), r"need rollout.filter_groups=true, got 1 and 3 without"),
        (
            ("rollout.filter_groups=true", "rollout.oversample=0.9"),
            r"'rollout.oversample' must be at least 1, got 0.9",
        ),
        (
            ("rollout.filter_groups=true", "rollout.max_rounds=0"),
            r"'rollout.max_rounds' must be at least 1, got 0",
        ),
        (("rollout.filter_groups=2",), r"'rollout.filter_groups' must be bool, got 2"),
        (("rollout.filter_groups=true", "rollout.group=1"), r"'rollout.group' must be at least 2"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(tmp_path, *overrides)


# Groups of three are often all right or all wrong; answers that begin with a 9 have no reward.
TASK = """
from logitless.rl.tasks import SumToN

class Picky(SumToN):
    def reward(self, prompt, completion):
        if completion.startswith("9"):
            raise KeyError("no nines")
        return super().reward(prompt, completion)

class Solved(SumToN):
    calls = 0

    def prompts(self, rng, n):
        self.calls += n == 15
        return super().prompts(rng, n)

    # all are right from the third step of the first method on
    def reward(self, prompt, completion):
        return 1.0 if self.calls > 2 else float(len(completion) % 2)
"""
OPTIONS = (
    "compare_repeats=0", "rollout.prompts=5", "rollout.group=3", "update.minibatches=2",
    "rollout.filter_groups=true", "rollout.oversample=1.2", "rollout.max_rounds=50",
    "evaluation.every=2", "evaluation.group=3", "evaluation.prompts=5",
    "task.name=picky_tasks.py:Picky",
)  # fmt: skip
METHODS, ONE = ("grpo", "clip_cov"), "methods={grpo: {preset: grpo}}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with home_in(tmp_path_factory.mktemp("filter")) as folder:
        (folder / "picky_tasks.py").write_text(TASK, "utf-8")
        yield folder


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    assert run(tiny_recipe(home, *OPTIONS), home / "alone") == 0
    return home / "alone"


def timeless(path: Path) -> list[dict[str, Any]]:
    clocks = ("seconds", "tokens_per_second", "peak_memory_bytes")
    return [
        {k: v for k, v in row.items() if not k.startswith(clocks)} for row in metrics.read(path)
    ]


def test_a_run_trains_on_groups_that_differ(alone: Path) -> None:
    reasons = set()
    for method in METHODS:
        rows = metrics.read(alone / method / metrics.FILE)
        assert max(row["train/num_gen_batches"] for row in rows) > 1
        lines = metrics.read(alone / method / completions.FILE)
        reasons |= {line.get("dropped") for line in lines}
        for row in rows:
            of_step = [line for line in lines if line["step"] == row["step"]]
            assert len(of_step) == 18 * row["train/num_gen_batches"]
            trained = [line for line in of_step if "dropped" not in line]
            assert len(trained) == 15
            assert sum(line["tokens"] for line in trained) == row["tokens"]
            for start in range(0, 15, 3):
                assert len({line["reward"] for line in trained[start : start + 3]}) > 1
            assert row["filtered_groups"] == pytest.approx(
                sum(line.get("dropped") in (EQUAL, NONE) for line in of_step) / len(of_step)
            )
            assert row["seconds/dropped answers"] > 0
    assert reasons == {None, EQUAL, NONE, SURPLUS}
    assert "dropped answers" not in metrics.read(alone / "grpo" / metrics.EVALUATION_FILE)[0]


def test_evaluations_have_no_filter(home: Path, alone: Path) -> None:
    """That of the start is that of a run without one."""
    plain = ("rollout.filter_groups=false", "rollout.oversample=1", "rollout.max_rounds=10")
    assert run(tiny_recipe(home, *OPTIONS, *plain, ONE, "steps=1"), home / "plain") == 0
    first, other = (
        metrics.read(at / "grpo" / metrics.EVALUATION_FILE)[0] for at in (alone, home / "plain")
    )
    assert first == other


def test_a_resumed_run_is_the_same_bit_for_bit(home: Path, alone: Path) -> None:
    out = home / half_way(alone, home / "again", METHODS)
    # it may have more rounds, which it does not need
    assert run(tiny_recipe(home, *OPTIONS, "rollout.max_rounds=60"), out, resume=True) == 0
    for method in METHODS:
        for file in (metrics.FILE, completions.FILE, metrics.EVALUATION_FILE):
            assert timeless(out / method / file) == timeless(alone / method / file)
        saved, expected = (checkpoint.latest(at / method) for at in (out, alone))
        for path in expected.glob("*.safetensors"):
            assert (saved / path.name).read_bytes() == path.read_bytes(), path


def test_two_ranks_choose_the_same_groups(home: Path, alone: Path) -> None:
    done = torchrun.forked(2, "train", "tiny.yaml", *OPTIONS, "--out", "pair", folder=home)
    assert done.returncode == 0, done.stderr
    assert_alike(home / "pair", alone, METHODS)
    dropped = [
        [line.get("dropped") for line in metrics.read(at / "grpo" / completions.FILE)]
        for at in (home / "pair", alone)
    ]
    assert dropped[0] == dropped[1] and any(dropped[0])


def test_a_seed_of_several_has_the_same_batches(home: Path, alone: Path) -> None:
    assert run(tiny_recipe(home, *OPTIONS, ONE, "steps=2", "seeds=[1, 0]"), home / "seeds") == 0
    for file in (metrics.FILE, completions.FILE):
        expected = [row for row in timeless(alone / "grpo" / file) if row["step"] < 2]
        assert timeless(home / "seeds" / "seed0" / "grpo" / file) == expected


def test_a_method_without_groups_ends_and_the_next_begins(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        *OPTIONS, "task.name=picky_tasks.py:Solved", "rollout.group=7", "rollout.max_rounds=1",
        "rollout.oversample=3", "evaluation.every=0", "checkpoint_every=1",
    )  # fmt: skip
    out = home / "solved"
    assert run(tiny_recipe(home, *options), out) == 1
    printed = capsys.readouterr().out
    message = "ends before step 3: 0 of 15 groups have rewards that differ, and a batch has 5"
    assert f"method 'grpo' {message}" in printed
    assert len(metrics.read(out / "grpo" / metrics.FILE)) == 2
    assert checkpoint.latest(out / "grpo").name == "checkpoint-000002"
    assert "method 'clip_cov' ends before step 1: 0 of 15 groups" in printed
    assert (out / "report.html").exists()


def test_a_dry_run_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny.yaml", *OPTIONS, "--dry-run", "--out", str(home / "dry")]) == 0
    printed = capsys.readouterr().out
    assert "5 prompts from up to 50 rounds of 6 prompts x 3 answers = 15 of up to 4" in printed
