"""Rewards that see whole groups and follow training: on ranks, in checkpoints, in evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from logitless.cli import main  # noqa: E402
from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.recipe import Recipe, RewardRecipe  # noqa: E402
from logitless.rl.tasks import Prompt, load_task, score  # noqa: E402
from logitless.rl.tracking import checkpoint, metrics  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402
from tests.support.rl.runs_alike import (  # noqa: E402
    assert_alike,
    assert_same,
    half_way,
    home_in,
)
from tests.support.workers import torchrun  # noqa: E402

CODE = """
from logitless.rl.tasks import Prompt

class Padded:
    # right: it begins with the digit; what comes behind is of no use
    def prompts(self, rng, n):
        return [Prompt(f"say {d}:", d) for d in (rng.randint(1, 9) for _ in range(n))]

    def reward(self, prompt, completion):
        if completion[:2] == "7!":
            raise KeyError("no sevens")
        return float(completion[:1] == str(prompt.data))

    def solution(self, rng, prompt):
        return str(prompt.data) + "!" * rng.randint(0, 6)

class Rarity:
    # the share of all answers so far that had another first letter
    def __init__(self, scale):
        self.scale, self.seen = scale, {}

    def __call__(self, prompt, completions, **row):
        total = sum(self.seen.values()) or 1
        return [self.scale * (1 - self.seen.get(text[:1], 0) / total) for text in completions]

    def after_step(self, groups):
        for group in groups:
            for text in group.completions:
                self.seen[text[:1]] = self.seen.get(text[:1], 0) + 1
        return {"letters": len(self.seen)}

    def state_dict(self):
        return self.seen

    def load_state_dict(self, state):
        self.seen = state

def ranks(prompt, completions, of, answer_tokens, data):
    (right,) = of
    if "x" in completions:
        raise ValueError("no x")
    return [r + sorted(answer_tokens).index(n) for r, n in zip(right, answer_tokens)]

class Broken(Rarity):
    def after_step(self, groups):
        raise LookupError("lost count")

class Mute:
    def __init__(self):
        pass
"""
OPTIONS = (
    "task={name: 'padded_tasks.py:Padded'}", "compare_repeats=0", "entropy_change_every=0",
    "rollout={prompts: 8, group: 8, max_new_tokens: 8}",
    "update={minibatches: 2, head_lr: 0.01, body_lr: 0.003}",
    "warmup={steps: 100, batch: 64, examples: 256, lr: 0.01, full_steps: 2}",
)  # fmt: skip
LASER_D = "{function: laser_d, of: [right], weight: 0.5, options: {limit: 8, every: 3}}"
RARE = "{function: 'padded_tasks.py:Rarity', options: {scale: 2}, weight: 0.1}"
RUN = (
    f"task.rewards={{right: {{function: task}}, short: {LASER_D}, rare: {RARE}}}",
    "evaluation={every: 2, prompts: 3, group: 3}",
)
METHODS = ("grpo", "clip_cov")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with home_in(tmp_path_factory.mktemp("following")) as folder:
        (folder / "padded_tasks.py").write_text(CODE, "utf-8")
        yield folder


def recipe(home: Path, *more: str) -> Recipe:
    return tiny_recipe(home, *OPTIONS, *more)


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    assert run(recipe(home, *RUN), home / "alone") == 0
    return home / "alone"


def states(run: Path) -> list[dict[str, dict[str, object]]]:
    found = [checkpoint.newest_first(run / method)[0] for method in METHODS]
    return [json.loads((saved / "rewards.json").read_text("utf-8")) for saved in found]


def test_what_they_follow_is_in_metrics_and_checkpoints(alone: Path) -> None:
    for method, state in zip(METHODS, states(alone), strict=True):
        rows = metrics.read(alone / method / metrics.FILE)
        targets = [row["reward_state/short/target_easy"] for row in rows]
        # from the first step's answers, and then from those of steps 2 and 3
        assert targets[0] == 8 and targets[1] == targets[2] < 8
        assert rows[0]["reward_state/rare/letters"] < 20
        assert sum(row["skipped_prompts"] for row in rows) > 0
        counted = sum(state["rare"].values())  # type: ignore[arg-type]
        assert counted == sum(8 * (8 - row["skipped_prompts"]) for row in rows)
        assert state["short"]["steps"] == 4
    # both methods have started from nothing, and the same
    first = [metrics.read(alone / method / metrics.FILE)[0] for method in METHODS]
    assert first[0]["reward/short"] == first[1]["reward/short"]


def test_a_resumed_run_is_the_same_bit_for_bit(home: Path, alone: Path) -> None:
    out = half_way(alone, home / "resumed", METHODS)
    assert run(recipe(home, *RUN), home / out, resume=True) == 0
    assert_same(home / out, alone, METHODS)
    assert states(home / out) == states(alone)


def test_a_checkpoint_without_them_is_none(home: Path, alone: Path) -> None:
    out = half_way(alone, home / "damaged", METHODS)
    for method in METHODS:
        (home / out / method / "checkpoint-000002" / "rewards.json").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint can be read: .*rewards\.json"):
        run(recipe(home, *RUN), home / out, resume=True)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_ranks_are_one_process(home: Path, alone: Path) -> None:
    """From the middle on, which reads the state on both."""
    out = half_way(alone, home / "pair", METHODS)
    done = torchrun.forked(
        2, "train", "tiny.yaml", *OPTIONS, *RUN, "--resume", "--out", out, folder=home
    )
    assert done.returncode == 0, done.stderr
    assert_alike(home / out, alone, METHODS)
    assert states(home / out) == states(alone)


def test_an_evaluation_of_a_checkpoint_has_its_rewards(
    home: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(alone / "grpo")]) == 0
    told = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    last = metrics.read(alone / "grpo" / metrics.EVALUATION_FILE)[-1]
    for key in ("reward", "reward/short", "reward/rare", "greedy_reward/rare"):
        assert told[key] == f"{last[key]:.4g}", key


def test_laser_d_shortens_answers_that_stay_right(home: Path) -> None:
    """Beside the same column without a weight."""
    more = ("methods={grpo: {preset: grpo}}", "steps=12", "checkpoint_every=12")
    last = {}
    for name, weight in {"trained": 1, "watched": 0}.items():
        short = (
            f"{{function: laser_d, of: [right], weight: {weight}, options: {{limit: 8, every: 4}}}}"
        )
        rewards = f"task.rewards={{right: {{function: task}}, short: {short}}}"
        assert run(recipe(home, rewards, *more), home / name) == 0
        rows = metrics.read(home / name / "grpo" / metrics.FILE)
        last[name] = {
            key: sum(row[key] for row in rows[-3:]) / 3
            for key in ("reward/right", "tokens_per_sequence")
        }
    # the digit and the end; without the reward about three marks behind it
    assert last["trained"]["tokens_per_sequence"] < 2.3
    assert last["watched"]["tokens_per_sequence"] > 3.5
    assert last["trained"]["reward/right"] > last["watched"]["reward/right"] - 0.05


def test_a_function_of_groups(home: Path) -> None:
    rewards = {
        "right": RewardRecipe("task"),
        "order": RewardRecipe("padded_tasks.py:ranks", of=["right"]),
    }
    task = load_task("padded_tasks.py:Padded", {}, rewards=rewards)
    prompts = [Prompt("say 1:", 1), Prompt("say 2:", 2), Prompt("say 3:", 3)]
    texts = ["1!", "0", "11", "2", "x", "7!", "3", "33", "0"]
    found = score(task, prompts, texts, tokens=[3, 2, 4, 2, 2, 3, 2, 3, 9])
    assert found.columns["order"].tolist() == [[2, 0, 3], [0, 0, 0], [1, 2, 2]]
    # an answer to the second prompt has no reward in the first column
    assert found.scored.tolist() == [True, False, True]
    assert found.failures[0].startswith("KeyError: 'no sevens'")
    # and here the function itself has failed for one prompt
    found = score(task, prompts[:2], ["1", "x", "2", "22"], tokens=[1, 1, 1, 2])
    assert found.scored.tolist() == [False, True]
    assert found.failures[0].startswith("ValueError: no x")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("{function: 'padded_tasks.py:Rarity'}", r"task\.rewards\.a\.function .*'scale'"),
        ("{function: 'padded_tasks.py:Mute'}", "Mute object .* is not a callable"),
        (
            "{function: 'padded_tasks.py:Rarity', options: {scale: 1}, of: [b]}",
            r"'task\.rewards\.a\.of' must name rewards that stand above",
        ),
    ],
)
def test_a_class_is_made_with_the_options(home: Path, reward: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(recipe(home, f"task.rewards={{a: {reward}}}"), home / "none")
    assert not (home / "none").exists()


def test_an_error_of_what_follows_is_the_users(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = "task.rewards={a: {function: 'padded_tasks.py:Broken', options: {scale: 1}}}"
    assert (
        main(["train", "tiny.yaml", *OPTIONS, broken, "warmup={steps: 0}", "--out", "broken"]) == 1
    )
    told = capsys.readouterr().err
    assert "after_step of the reward 'a' has failed: LookupError: lost count" in told
    assert "padded_tasks.py" in told
