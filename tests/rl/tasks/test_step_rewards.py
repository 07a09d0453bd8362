"""Rewards of steps in a run: advantages of tokens from the sampled answers to the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from logitless.rl.answer_rows import answer_rows  # noqa: E402
from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.experience import Experience, collect, describe  # noqa: E402
from logitless.rl.policy import make_policy  # noqa: E402
from logitless.rl.recipe import Recipe, RewardRecipe  # noqa: E402
from logitless.rl.tasks import load_task  # noqa: E402
from logitless.rl.tracking import completions, metrics  # noqa: E402
from logitless.rl.tracking.stopwatch import Stopwatch  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402
from tests.support.rl.runs_alike import (  # noqa: E402
    assert_alike,
    assert_same,
    half_way,
    home_in,
)
from tests.support.workers import torchrun  # noqa: E402

CODE = """
import random
from logitless.rl.tasks import Prompt

class Twice:
    # "twice 3:" -> "33", of which a warm-up knows the first digit
    def prompts(self, rng, n):
        digits = [str(rng.randint(1, 3)) for _ in range(n)]
        return [Prompt(f"twice {digit}:", {"digit": digit}) for digit in digits]

    def reward(self, prompt, completion):
        return float(completion == 2 * prompt.data["digit"])

    def solution(self, rng, prompt):
        return prompt.data["digit"] + str(rng.randint(1, 3))

def steps(prompt, completion, digit):
    # each character is a step
    if completion == "31":
        return [(1, 1.0), (2, float("nan"))]
    if not completion:
        return [(0, -1.0)]
    right = [i < 2 and c == digit for i, c in enumerate(completion)]
    return [(i + 1, 1.0 if x else -1.0) for i, x in enumerate(right)]
"""
OPTIONS = (
    "task={name: 'twice_tasks.py:Twice'}", "compare_repeats=0",
    "rollout={prompts: 5, group: 7, max_new_tokens: 4}",
    "update={minibatches: 3, micro_batches: 2, head_lr: 0.01, body_lr: 0.003}",
    "warmup={steps: 100, batch: 64, examples: 256, lr: 0.01, full_steps: 2}",
)  # fmt: skip
STEPS = "steps: {function: 'twice_tasks.py:steps', steps: min}"
RUN = (
    f"task.rewards={{right: {{function: task, weight: 0.5}}, {STEPS}}}",
    "methods={pure: {preset: grpo, advantage: pure}, "
    "sums: {preset: clip_cov, advantage: process, change: {control: {fraction: 0.2, low: 0.0, "
    "high: 50.0}}}}",
    "show_answers=7",
)
METHODS = ("pure", "sums")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with home_in(tmp_path_factory.mktemp("steps")) as folder:
        (folder / "twice_tasks.py").write_text(CODE, "utf-8")
        yield folder


def recipe(home: Path, *more: str) -> Recipe:
    return tiny_recipe(home, *OPTIONS, *more)


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    assert run(recipe(home, *RUN), home / "alone") == 0
    return home / "alone"


def test_a_step_that_is_bad_has_negative_advantages(home: Path, alone: Path) -> None:
    """The tokens up to the bad one, by PURE, whose sum is the least reward; by sums, of a bad step
    behind a good one, its own alone."""
    seen = {"pure": 0, "sums": 0}
    for method in seen:
        for row in metrics.read(alone / method / completions.FILE):
            own = row.get("advantages")
            if own is None or [reward for _, reward in row["steps"]] != [1.0, -1.0]:
                continue
            first, second, *_ = own
            # the answer is wrong as well, which lowers all its tokens
            if method == "pure":
                assert first == pytest.approx(second, abs=1e-3) and first < 0
            else:
                assert first == pytest.approx(second + 1, abs=1e-3) and second < 0
            assert row["advantage"] == pytest.approx(sum(own) / row["tokens"], abs=1e-3)
            seen[method] += 1
    assert min(seen.values()) > 2, seen


def test_the_least_step_is_the_answers_reward(alone: Path) -> None:
    skipped = 0
    for method in METHODS:
        lines = metrics.read(alone / method / completions.FILE)
        for row in lines:
            if row.get("dropped") is not None:
                assert row["dropped"] == "no reward" and row["steps"] is None
                skipped += 1
                continue
            assert row["reward/steps"] == min(reward for _, reward in row["steps"])
            assert row["reward"] == row["reward/steps"] + row["reward/right"] / 2
            ends = [end for end, _ in row["steps"]]
            # the end token is of the last step
            assert ends == sorted(ends) and ends[-1] == row["tokens"]
        rows = metrics.read(alone / method / metrics.FILE)
        for row in rows:
            of_step = [x["reward/steps"] for x in lines if x["step"] == row["step"]]
            of_step = [x for x in of_step if x is not None]
            assert row["reward/steps"] == pytest.approx(sum(of_step) / len(of_step))
    # "31" has no reward of its second step
    assert skipped > 0


def test_a_resumed_run_is_the_same_bit_for_bit(home: Path, alone: Path) -> None:
    out = half_way(alone, home / "resumed", METHODS)
    assert run(recipe(home, *RUN), home / out, resume=True) == 0
    assert_same(home / out, alone, METHODS)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_ranks_are_one_process(home: Path, alone: Path) -> None:
    out = half_way(alone, home / "pair", METHODS)
    done = torchrun.forked(
        2, "train", "tiny.yaml", *OPTIONS, *RUN, "--resume", "--out", out, folder=home
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_alike(home / out, alone, METHODS)


def test_micro_batches_are_one(home: Path, alone: Path) -> None:
    cut = ("update.micro_batches=1", "update.micro_tokens=40")
    out = "cut"
    assert run(recipe(home, *RUN, *cut), home / out) == 0
    assert_alike(home / out, alone, METHODS)


def test_it_trains(home: Path) -> None:
    """PURE finds the second digit, from the rewards of steps alone."""
    more = (
        "methods={pure: {preset: grpo, advantage: pure}}", f"task.rewards={{{STEPS}}}", "steps=20",
        "checkpoint_every=20", "rollout.prompts=8", "rollout.group=8", "entropy_change_every=0",
    )  # fmt: skip
    assert run(recipe(home, *more), home / "trained") == 0
    rows = metrics.read(home / "trained" / "pure" / metrics.FILE)
    least = [row["reward/steps"] for row in rows]
    assert sum(least[:3]) / 3 < -0.3 and sum(least[-3:]) / 3 > 0.3


def collected(folder: Path, advantage: str, *more: str) -> tuple[Recipe, Experience]:
    wanted = recipe(folder, *RUN, *more)
    rewards = {
        "right": RewardRecipe("task", weight=0.5),
        "steps": RewardRecipe("twice_tasks.py:steps", steps="min"),
    }
    task = load_task("twice_tasks.py:Twice", {}, rewards=rewards)
    policy = make_policy(wanted.model, 0)
    return wanted, collect(policy, task, wanted, advantage, 0, Stopwatch())


def lines_of(found: Experience) -> list[dict[str, Any]]:
    return answer_rows(found, 0, 3, str, torch.zeros_like(found.rollout.mask))


def test_other_advantages_are_of_the_answers_reward(home: Path) -> None:
    _, found = collected(home, "group_mean")
    assert torch.equal(found.advantages, (found.rewards - found.rewards.mean(1, True)).flatten())
    assert all("steps" in line and "advantages" not in line for line in lines_of(found))


def test_answers_that_are_cut_off_can_be_left_out(home: Path) -> None:
    _, whole = collected(home, "pure")
    wanted, found = collected(home, "pure", "rollout.mask_truncated=true")
    cut = whole.sampled.truncated
    assert 0 < int(cut.sum()) < len(cut)
    assert torch.equal(found.advantages, whole.advantages[~cut])
    assert len(found.rollout.mask) == len(found.advantages)
    row = describe(found, wanted.task.right)
    own = found.advantages[found.rollout.mask]
    assert row["critic/advantages/min"] == pytest.approx(float(own.min()))
    kept = [line for line in lines_of(found) if "dropped" not in line]
    assert len(kept) == len(found.advantages)
    for line, advantages in zip(kept, found.advantages.tolist(), strict=True):
        n = line["tokens"]
        assert line["advantage"] == pytest.approx(sum(advantages[:n]) / n)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("task.rewards={right: {function: task}}",),
            r"'task\.rewards' must have a reward with steps for the advantage pure of methods\.pure"
            ", got right",
        ),
        (("task.rewards={}",), r"'task\.rewards' must have a reward with steps .*, got none"),
        (
            ("rollout.filter_groups=true",),
            r"'rollout\.filter_groups' must be false with the advantage pure of methods\.pure",
        ),
        (
            ("task.threshold=1",),
            r"'task\.threshold' must be null with the advantage pure of methods\.pure.*got 1",
        ),
        (
            ("methods={a: {preset: gspo}, b: {preset: gspo, advantage: process}}",),
            r"'methods\.b\.advantage' must not be process with a loss of ratio 'sequence'",
        ),
        (("update.pure_temperature=0",), r"'update\.pure_temperature' must be above 0, got 0"),
    ],
)
def test_what_does_not_go_together_is_refused(
    home: Path, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(recipe(home, *RUN, *more), home / "none")
    assert not (home / "none").exists()


def test_sequence_ratios_of_tokens_take_them(home: Path) -> None:
    gspo = "methods={gspo: {preset: gspo_token, advantage: pure}}"
    assert run(recipe(home, *RUN, gspo, "steps=1"), home / "gspo") == 0
    assert metrics.read(home / "gspo" / "gspo" / metrics.FILE)[0]["grad_norm"] > 0
