"""Answers that the limit of tokens cuts off: counted, and left out of training where asked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from logitless.rl.answer_rows import answer_rows  # noqa: E402
from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.engine import LocalEngine  # noqa: E402
from logitless.rl.experience import (  # noqa: E402
    Experience,
    TooFewGroups,
    collect,
    describe,
    of_largest,
)
from logitless.rl.policy import Policy, make_policy  # noqa: E402
from logitless.rl.recipe import make_spec  # noqa: E402
from logitless.rl.rollout import Rollout  # noqa: E402
from logitless.rl.tasks import Prompt  # noqa: E402
from logitless.rl.tracking import metrics  # noqa: E402
from logitless.rl.tracking.stopwatch import Stopwatch  # noqa: E402
from logitless.rl.update import update_policy  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402

LIMIT = 3
OFF = ("compare_repeats=0", "warmup.steps=0", "warmup.full_steps=0", "entropy_change_every=0")


class Lengths:
    """An answer is worth its letters, and a little."""

    def prompts(self, rng: random.Random, n: int) -> list[Prompt]:
        return [Prompt(f"prompt {i}:") for i in range(n)]

    def reward(self, prompt: Prompt, completion: str) -> float:
        return float(sum(map(ord, completion)) % 7)


def collected(folder: Path, *changes: str) -> tuple[Policy, Any, Experience]:
    """Some answers end by themselves, at different lengths, and some do not."""
    recipe = tiny_recipe(
        folder, f"rollout={{prompts: 3, group: 8, max_new_tokens: {LIMIT}}}", *OFF,
        "update.minibatches=1", *changes,
    )  # fmt: skip
    policy = make_policy(recipe.model, 0)
    with torch.no_grad():
        ids = torch.tensor(policy.encode(["prompt 0:"]))
        state = policy.states(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]
        policy.weight.mul_(8.0)
        # the end token has this logit behind the prompt
        policy.weight[policy.eos] = 4.5 * state / (state @ state)
    return policy, recipe, collect(policy, Lengths(), recipe, "group_mean", 0, Stopwatch())


def test_an_answer_is_cut_off_if_it_has_no_end(tmp_path: Path) -> None:
    policy, _, found = collected(tmp_path)
    drawn = found.sampled.answers.rollout
    lengths = drawn.lengths.tolist()
    rows = zip(drawn.ids[:, drawn.prompt_length :].tolist(), lengths, strict=True)
    last = [ids[n - 1] for ids, n in rows]
    expected = [token not in policy.ends for token in last]
    assert drawn.truncated(policy.ends).tolist() == expected
    assert 0 < sum(expected) < len(expected)
    assert {n for n, cut in zip(lengths, expected, strict=True) if cut} == {LIMIT}


def test_an_answer_that_ends_with_its_last_token_is_whole() -> None:
    ids = torch.tensor([[9, 9, 1, 2, 7], [9, 9, 1, 2, 3], [9, 9, 7, 7, 7], [9, 9, 1, 8, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
    zeros = torch.zeros(4, 3)
    rollout = Rollout(ids, torch.ones_like(ids).bool(), mask, logp=zeros, entropy=zeros)
    assert rollout.truncated([7, 8]).tolist() == [False, True, False, False]


def test_they_count_in_metrics(tmp_path: Path) -> None:
    _, _, found = collected(tmp_path)
    row, drawn = describe(found, right=1.0), found.sampled.answers.rollout
    lengths = drawn.lengths.tolist()
    assert row["response_length/clip_ratio"] == pytest.approx(
        float(found.sampled.truncated.float().mean())
    )
    assert row["response_length/mean"] == pytest.approx(sum(lengths) / len(lengths))
    assert (row["response_length/min"], row["response_length/max"]) == (min(lengths), max(lengths))
    assert row["prompt_length/mean"] == row["prompt_length/max"] == len("prompt 0:")
    assert row["critic/rewards/mean"] == pytest.approx(row["reward"])
    assert row["critic/rewards/max"] == float(found.rewards.max())
    weights = torch.tensor(lengths) / sum(lengths)
    assert row["critic/advantages/mean"] == pytest.approx(
        float(found.advantages @ weights), abs=1e-6
    )


def test_the_share_of_the_largest_entropies() -> None:
    assert of_largest(torch.tensor([1.0] * 10))["entropy_top20_share"] == pytest.approx(0.2)
    # 2 of 6: a fifth, rounded up
    found = of_largest(torch.tensor([0.0, 3.0, 0.5, 0.0, 5.0, 1.5]))
    assert found["entropy_top20_share"] == pytest.approx(8 / 10)
    assert of_largest(torch.zeros(5)) == {}


def test_masked_ones_are_not_trained_on(tmp_path: Path) -> None:
    _, _, whole = collected(tmp_path)
    _, _, found = collected(tmp_path, "rollout.mask_truncated=true")
    cut = found.sampled.truncated
    assert torch.equal(whole.sampled.truncated, cut)
    # advantages are those of whole groups
    assert torch.equal(found.advantages, whole.advantages[~cut])
    assert torch.equal(found.rollout.lengths, whole.rollout.lengths[~cut])
    assert torch.equal(
        found.rollout.targets, whole.rollout.sequences((~cut).nonzero()[:, 0]).targets
    )
    one, two = describe(whole, 1.0), describe(found, 1.0)
    of_batch = {"tokens", "covariance", "critic/advantages/mean"}
    assert {key for key in one if one[key] != two[key]} >= {"tokens"}
    assert {key for key in one if one[key] != two[key]} <= {
        *of_batch, "critic/advantages/max", "critic/advantages/min"
    }  # fmt: skip
    nothing = torch.zeros_like(found.rollout.mask)
    lines = answer_rows(found, 0, 1, str, nothing)
    assert [line.get("dropped") == "truncated" for line in lines] == cut.tolist()
    assert [line["advantage"] is None for line in lines] == cut.tolist()
    assert [line["truncated"] for line in lines] == cut.tolist()


@pytest.mark.parametrize("preset", ["grpo", "dapo", "clip_cov"])
def test_they_have_no_gradient_however_the_batch_is_cut(tmp_path: Path, preset: str) -> None:
    weights = []
    for parts in (1, 3):
        policy, recipe, found = collected(
            tmp_path, "rollout.mask_truncated=true", f"update.micro_batches={parts}",
            f"methods={{it: {{preset: {preset}}}}}",
        )  # fmt: skip
        spec = make_spec("it", recipe.methods["it"], LIMIT)
        before = policy.weight.detach().clone()
        engine = LocalEngine(policy, recipe.update)
        update = update_policy(
            engine, found.rollout, found.advantages, spec, recipe, 0, Stopwatch()
        )
        assert update.metrics["grad_norm"] > 0
        weights.append((update.metrics["grad_norm"], policy.weight.detach() - before))
    assert weights[0][0] == pytest.approx(weights[1][0], rel=1e-5)
    assert weights[0][1].abs().max() > 1e-4


def test_the_gradient_is_that_of_the_others(tmp_path: Path) -> None:
    """d/dW of -sum(A log p) over the tokens of whole answers, by autograd of plain logits."""
    policy, recipe, found = collected(
        tmp_path, "rollout.mask_truncated=true", "update.micro_batches=3",
        "methods={it: {preset: dapo}}", "update.embedding_lr=1e-9", "update.clip_norm=.inf",
    )  # fmt: skip
    cut = found.sampled.truncated
    drawn = found.sampled.answers.rollout
    advantages = (found.rewards - found.rewards.mean(dim=1, keepdim=True)).flatten()
    total, tokens = torch.zeros(()), 0
    for i in (~cut).nonzero()[:, 0].tolist():
        ids = drawn.ids[i][drawn.attention[i]]
        n = int(drawn.lengths[i])
        logits = policy.model(ids[None]).logits[0, :-1]
        if policy.padding is not None:
            logits = logits + policy.padding
        logp = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[-n:, 0]
        total, tokens = total - advantages[i] * logp.sum(), tokens + n
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    plain = torch.autograd.grad(total / tokens, parameters)
    norm = float(torch.cat([g.flatten() for g in plain]).norm())
    spec = make_spec("it", recipe.methods["it"], LIMIT)
    engine = LocalEngine(policy, recipe.update)
    update = update_policy(engine, found.rollout, found.advantages, spec, recipe, 0, Stopwatch())
    assert update.metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_a_batch_of_nothing_else_ends_the_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("rollout.mask_truncated=true", "rollout.max_new_tokens=1", "steps=2")
    recipe = tiny_recipe(tmp_path, *OFF, *changes, "methods={grpo: {preset: grpo}}")
    policy = make_policy(recipe.model, 0)
    with pytest.raises(TooFewGroups, match=r"step 1: all 32 answers are truncated"):
        collect(policy, Lengths(), recipe, "group_mean", 0, Stopwatch())
    assert run(recipe, tmp_path / "run") == 1
    assert "method 'grpo' ends before step 1: all 32 answers" in capsys.readouterr().out


def test_a_run_with_masked_answers(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path, "rollout.mask_truncated=true", "rollout.max_new_tokens=2", "steps=2",
        "compare_repeats=0", "entropy_change_every=1", "methods={grpo: {preset: grpo}}",
        "task.options={low: 8, high: 9, digits: 1}",
    )  # fmt: skip
    assert run(recipe, tmp_path / "run") == 0
    rows = metrics.read(tmp_path / "run" / "grpo" / metrics.FILE)
    for row in rows:
        assert 0 <= row["response_length/clip_ratio"] < 1
        assert row["actor/grad_norm"] == row["grad_norm"]
        assert "actor/entropy" in row
