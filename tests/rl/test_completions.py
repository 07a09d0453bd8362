from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from logitless.rl.answer_rows import answer_rows, chosen
from logitless.rl.answers import Answers
from logitless.rl.experience import Experience, Sampled
from logitless.rl.rollout import Rollout
from logitless.rl.tasks import Scores
from logitless.rl.tracking import completions, metrics


def experience() -> Experience:
    """Two prompts of three answers, of 1 to 3 tokens."""
    lengths = torch.tensor([1, 2, 3, 3, 2, 1])
    mask = torch.arange(3) < lengths[:, None]
    values = torch.arange(18, dtype=torch.float32).view(6, 3)
    prompt = torch.full((6, 2), 9)
    ids = torch.cat([prompt, torch.arange(18).view(6, 3)], dim=1)
    rollout = Rollout(ids, torch.ones(6, 5, dtype=torch.bool), mask, -values * mask, values * mask)
    rewards = torch.tensor([[0.25, 1.0, 0.5], [0.0, 0.0, 2.0]])
    texts = [f"answer {i}" for i in range(6)]
    chat = [{"role": "user", "content": "and now?"}]
    scores = Scores(rewards, torch.tensor([True, True]), [])
    cut = torch.tensor([False, True, False, False, False, False])
    sampled = Sampled(["first", chat], Answers(rollout, texts, scores), [None, None], 1, cut)
    return Experience(rollout, rewards, rewards.flatten(), sampled)


def rows(shown: int = 2) -> list[metrics.Row]:
    selected = torch.zeros(6, 3, dtype=torch.bool)
    selected[1, 1] = selected[4, 0] = True
    return answer_rows(experience(), 7, shown, lambda ids: f"<{ids[0]}>", selected)


def test_every_answer_has_a_line() -> None:
    found = rows()
    assert [row["completion"] for row in found] == [f"answer {i}" for i in range(6)]
    assert [row["reward"] for row in found] == [0.25, 1.0, 0.5, 0.0, 0.0, 2.0]
    assert [row["tokens"] for row in found] == [1, 2, 3, 3, 2, 1]
    assert [row["truncated"] for row in found] == [False, True, False, False, False, False]
    assert {row["step"] for row in found} == {7}
    assert found[2]["logp"] == -(6 + 7 + 8) and found[2]["entropy"] == 7.0
    assert found[0]["prompt"] == "first" and found[3]["prompt"][0]["content"] == "and now?"
    assert json.loads(json.dumps(found)) == found


def test_the_best_and_the_worst_answers_have_pieces() -> None:
    found = rows()
    assert [i for i, row in enumerate(found) if "pieces" in row] == [0, 1]
    assert found[1]["pieces"] == [["<3>", 3.0, -3.0], ["<4>", 4.0, -4.0, True]]
    assert not any("pieces" in row for row in rows(0))
    assert sum("pieces" in row for row in rows(9)) == 3


def test_marks_are_of_the_answers_that_are_trained_on() -> None:
    of_all = experience()
    sampled = of_all.sampled._replace(masked=True)
    selected = torch.zeros(5, 3, dtype=torch.bool)
    selected[1, 2] = True
    found = answer_rows(of_all._replace(sampled=sampled), 7, 3, str, selected)
    assert [row.get("dropped") for row in found[:3]] == [None, "truncated", None]
    marked = [[len(piece) == 4 for piece in row["pieces"]] for row in found[:3]]
    assert marked == [[False], [False, False], [False, False, True]]


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [1]), (2, [1, 0]), (3, [1, 3, 0]), (9, [1, 3, 2, 0])]
)
def test_chosen_answers_are_spread_over_the_rewards(count: int, expected: list[int]) -> None:
    assert chosen([0.1, 0.9, 0.2, 0.4], count) == expected


def test_a_line_of_the_terminal_is_one_line() -> None:
    line = completions.one_line({"prompt": "a\nb", "completion": "x " * 100, "reward": 0.5})
    assert line.startswith("      0.50  a b -> x x") and line.endswith("...")
    assert len(line) < 110 and "\n" not in line
    assert "and now?" in completions.one_line(rows()[3])


def test_those_of_the_first_and_the_last_step_are_shown(tmp_path: Path) -> None:
    assert completions.shown(tmp_path) == []
    for step in range(3):
        metrics.append(tmp_path / completions.FILE, *[row | {"step": step} for row in rows()])
    assert [row["step"] for row in completions.shown(tmp_path)] == [0, 0, 2, 2]


def test_a_line_that_was_cut_short_is_none(tmp_path: Path) -> None:
    path = tmp_path / metrics.FILE
    metrics.append(path, {"step": 0}, {"step": 1})
    path.write_text(path.read_text()[:-4])
    assert metrics.read(path) == [{"step": 0}]
    assert metrics.keep_before(path, 5) == [{"step": 0}]
    metrics.append(path, {"step": 1})
    assert metrics.read(path) == [{"step": 0}, {"step": 1}]
