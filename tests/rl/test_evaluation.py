from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from logitless import cli
from logitless.rl.answers import Answers, task_of
from logitless.rl.demo.job import run
from logitless.rl.evaluation import against_start, evaluate, of_sampled, pass_at, powers_of_two
from logitless.rl.policy import make_policy
from logitless.rl.report.reward_columns import evaluated_rewards_table
from logitless.rl.report.text import evaluation_table
from logitless.rl.rollout import Rollout
from logitless.rl.tasks import Scores
from logitless.rl.tracking import metrics
from tests.support.recipes import tiny_recipe

OPTIONS = ("steps=3", "compare_repeats=0", "evaluation.every=2", "evaluation.group=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a run which evaluates."""
    out = tmp_path_factory.mktemp("evaluated")
    assert run(tiny_recipe(out, *OPTIONS), out / "run") == 0
    return out / "run"


@pytest.mark.parametrize(("n", "right"), [(1, 0), (1, 1), (4, 1), (5, 3), (6, 0), (6, 6)])
def test_pass_at_k_is_the_mean_over_all_choices(n: int, right: int) -> None:
    answers = [True] * right + [False] * (n - right)
    for k in range(1, n + 1):
        chosen = [any(some) for some in itertools.combinations(answers, k)]
        assert pass_at(k, n, right) == pytest.approx(sum(chosen) / len(chosen))


def test_ks_are_powers_of_two_up_to_the_group() -> None:
    assert powers_of_two(1) == [1]
    assert powers_of_two(7) == [1, 2, 4]
    assert powers_of_two(8) == [1, 2, 4, 8]


def test_numbers_of_given_answers() -> None:
    """Three prompts of two answers; the second could not be scored."""
    mask = torch.tensor([[True, False], [True, True]] * 3)
    entropy = mask.float() * torch.tensor([1.0, 3.0])
    rollout = Rollout(torch.zeros(6, 3, dtype=torch.long), mask, mask, -entropy, entropy)
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.5, 1.0]])
    scores = Scores(rewards, torch.tensor([True, False, True]), ["why"])
    row = of_sampled(Answers(rollout, ["a", "a", "b", "c", "d", "e"], scores), least=1.0)
    assert row == {
        "reward": 0.875, "reward_std": pytest.approx(0.125**0.5 / 2), "right": 0.75,
        "pass@1": 0.75, "pass@2": 1.0, "distinct_right_answers": 1.0,
        "entropy": pytest.approx(15 / 9), "tokens": 1.5,
        # one answer twice, and two answers
        "answer_entropy": pytest.approx(math.log(2) / 2),
        "balance": pytest.approx((1 / 8 + 1 / 8 * 1 / 2) / 2),
        "skipped_prompts": 1, "right_answers": [2, None, 1],
    }  # fmt: skip


def test_means_and_spreads_of_several_rewards() -> None:
    """Of the prompts that could be scored; one answer to a prompt has no spread."""
    columns = {
        "a": torch.tensor([[1.0, 3.0], [9.0, 9.0], [2.0, 2.0]]),
        "b": torch.tensor([[0.0, 4.0], [9.0, 9.0], [1.0, 2.0]]),
    }
    scored = torch.tensor([True, False, True])
    found = Scores(columns["a"] + columns["b"], scored, [], columns=columns).means
    assert found == {
        "reward": 3.75, "reward/a": 2.0, "reward/b": 1.75,
        "reward_std": pytest.approx((18**0.5 + 0.5**0.5) / 2),
        "reward_std/a": pytest.approx(2**0.5 / 2),
        "reward_std/b": pytest.approx((8**0.5 + 0.5**0.5) / 2),
    }  # fmt: skip
    alone = {name: x[:, :1] for name, x in columns.items()}
    found = Scores(alone["a"] + alone["b"], scored, [], columns=alone).means
    assert found == {"reward": 2.0, "reward/a": 1.5, "reward/b": 0.5}


def test_the_start_is_the_first_evaluation_of_the_same() -> None:
    def row(evaluated: str, *right: int) -> metrics.Row:
        return {"evaluated": evaluated, "right_answers": list(right)}

    before = [{"step": 0}, row("other", 1), row("same", 1, 0, 0, 2), row("same", 9, 9, 9, 9)]
    assert against_start(row("same", 0, 1, 1, 2), before) == {
        "support_shrink": 0.25, "support_expand": 0.5,
    }  # fmt: skip
    assert against_start(row("new", 1), before) == {}


def test_an_evaluation_is_a_function_of_the_weights(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, *OPTIONS)
    policy = make_policy(recipe.model, seed=0)
    first = evaluate(policy, task_of(recipe), recipe)
    assert first == evaluate(policy, task_of(recipe), recipe)
    with torch.no_grad():
        policy.weight.mul_(30)
    assert first != evaluate(policy, task_of(recipe), recipe)


def test_a_run_evaluates_at_both_ends_and_on_the_way(folder: Path) -> None:
    for name in ("grpo", "clip_cov"):
        rows = metrics.read(folder / name / metrics.EVALUATION_FILE)
        assert [row["step"] for row in rows] == [0, 2, 3]
        assert all(row["pass@1"] <= row["pass@2"] <= row["pass@4"] for row in rows)
        start = rows[0]
        assert start["support_shrink"] == start["support_expand"] == 0.0
        assert {row["evaluated"] for row in rows} == {start["evaluated"]}
        for row in rows:
            pairs = [*zip(start["right_answers"], row["right_answers"], strict=True)]
            gained = sum(not before and after > 0 for before, after in pairs)
            assert row["support_expand"] == gained / len(pairs)
            solved = sum(after > 0 for _, after in pairs)
            assert row["pass@4"] == pytest.approx(solved / len(pairs))
            assert 0.0 <= row["answer_entropy"] <= math.log(4) + 1e-9
    # both start from the same weights
    first = [metrics.read(folder / x / metrics.EVALUATION_FILE)[0] for x in ("grpo", "clip_cov")]
    assert first[0] == first[1]
    report = (folder / "report.html").read_text("utf-8")
    assert "pass@4" in report and "prompts lost" in report and "<h3>Prompts lost</h3>" in report


def test_a_resumed_run_has_each_evaluation_once(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(tiny_recipe(tmp_path, *OPTIONS, "steps=2"), out) == 0
    metrics.append(out / "grpo" / metrics.EVALUATION_FILE, {"step": 3})
    assert run(tiny_recipe(tmp_path, *OPTIONS), out, resume=True) == 0
    for name in ("grpo", "clip_cov"):
        once, again = (metrics.read(x / name / metrics.EVALUATION_FILE) for x in (folder, out))
        assert once == again


def test_the_command_has_the_numbers_of_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", str(folder)]) == 0
    both = capsys.readouterr().out
    assert "grpo after 3 steps" in both and "clip_cov after 3 steps" in both
    assert cli.main(["eval", str(folder / "grpo")]) == 0
    lines = capsys.readouterr().out.splitlines()
    last = metrics.read(folder / "grpo" / metrics.EVALUATION_FILE)[-1]
    found = dict(line.split() for line in lines[1:])
    expected = {key: f"{value:.4g}" for key, value in metrics.numbers(last).items()}
    assert found == {key: value for key, value in expected.items() if key != "step"}
    assert "support_shrink" in found
    assert cli.main(["eval", str(folder / "grpo"), "evaluation.group=2"]) == 0
    # the run has no start that was evaluated so
    other = capsys.readouterr().out
    assert "pass@2" in other and "pass@4" not in other and "support" not in other


def test_what_cannot_be_evaluated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(folder.parent / "none")]) == 2
    assert "is no folder of a run" in capsys.readouterr().err
    assert cli.main(["eval", str(folder), "evaluation.group=0"]) == 2
    assert "'evaluation.group' must be at least 1, got 0" in capsys.readouterr().err


def test_a_file_of_held_out_prompts_needs_one_of_prompts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'evaluation\.file' needs task\.prompts"):
        tiny_recipe(tmp_path, "evaluation.file=held_out.jsonl")


def test_held_out_prompts_come_from_their_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "c"}\n{"prompt": "d"}\n')
    (tmp_path / "my.py").write_text(
        "def score(prompt, completion):\n    return 0.5 if prompt in 'cd' else 0.0\n"
    )
    recipe = tiny_recipe(
        tmp_path, f"task={{prompts: {tmp_path}/prompts.jsonl, reward: '{tmp_path}/my.py:score'}}",
        f"evaluation={{file: {tmp_path}/held_out.jsonl, prompts: 2, group: 2}}", "warmup.steps=0",
        "warmup.full_steps=0",
    )  # fmt: skip
    row = evaluate(make_policy(recipe.model, seed=0), task_of(recipe), recipe)
    assert row["reward"] == row["greedy_reward"] == 0.5 and row["right"] == 0.0


def test_the_table_of_rewards_has_means_and_spreads() -> None:
    row = {"reward": 1.0, "reward/a": 0.25, "reward_std/a": 0.5}
    last = row | {"reward/a": 0.75, "reward/b": 0.125}
    assert evaluated_rewards_table({"grpo": [row, row, last], "none": []}) == [
        ["evaluation, before their weights", "a", "b"],
        ["grpo", "0.250 ± 0.500 → 0.750 ± 0.500", "- → 0.125"],
    ]
    assert evaluated_rewards_table({"grpo": [{"reward": 1.0}], "none": []}) == []


def test_the_table_goes_from_the_first_to_the_last() -> None:
    row = {"right": 0.25, "pass@1": 0.25, "pass@2": 0.5, "greedy_right": 1.0, "entropy": 2.0}
    row |= {"distinct_right_answers": 1.5}
    table = evaluation_table({"grpo": [row, row | {"right": 0.75}], "none": []})
    assert table[0] == ["evaluation", "right", "pass@2", "greedy", "entropy", "distinct right"]
    assert table[1][:3] == ["grpo", "0.250 → 0.750", "0.500 → 0.500"]
    assert len(table) == 2
    more = row | {"answer_entropy": 1.0, "balance": 0.5, "right_answers": [1, 2]}
    assert evaluation_table({"grpo": [more]})[0][4:6] == ["answer entropy", "balance"]
    assert evaluation_table({"none": []}) == []
