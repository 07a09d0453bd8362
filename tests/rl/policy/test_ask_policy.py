"""`logitless sample`: a run's policy is asked as in its rollouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from logitless import cli
from logitless.cli_arguments import parse
from logitless.rl.ask_policy import Answer, ask_policy
from logitless.rl.demo.job import run
from logitless.rl.policy import load_policy, make_policy
from logitless.rl.rollout import sample
from logitless.rl.tracking import checkpoint
from logitless.rl.tracking.stopwatch import Stopwatch
from tests.support.recipes import tiny_recipe

TEMPLATE = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
PROMPT, SYSTEM = "sum 8:", "Be brief."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with a chat template, a system's turn and top-k, of two methods."""
    out = tmp_path_factory.mktemp("asked")
    policy = make_policy(tiny_recipe(out).model, seed=0)
    policy.tokenizer.chat_template = TEMPLATE
    policy.save(out / "model")
    recipe = tiny_recipe(
        out, f"model={{path: {out}/model}}", "warmup.steps=0", "warmup.full_steps=0", "steps=1",
        "rollout.chat_template=true", f"rollout.system_prompt={SYSTEM}", "rollout.top_k=5",
        "rollout.temperature=0.5", "compare_repeats=0",
    )  # fmt: skip
    assert run(recipe, out / "run") == 0
    return out / "run"


def expected(saved: Path, *, template: bool) -> list[Answer]:
    policy = load_policy(saved)
    of_run = {"chat_template": True, "system": SYSTEM} if template else {}
    rollout = sample(
        policy, policy.encode([PROMPT], **of_run), group=6, max_new_tokens=4, temperature=0.5,
        top_k=5, seed=1, step=0, clock=Stopwatch(),
    )  # fmt: skip
    logp = rollout.logp.sum(dim=1).tolist()
    return [Answer(*x) for x in zip(logp, rollout.texts(policy.tokenizer), strict=True)]


def test_a_runs_policy_is_asked_as_in_its_rollouts(folder: Path) -> None:
    saved = checkpoint.latest(folder / "grpo")
    assert saved is not None
    wanted = expected(saved, template=True)
    for place in (folder / "grpo", saved):
        assert ask_policy(place, PROMPT, answers=6, seed=1) == wanted
    assert wanted != expected(saved, template=False)
    assert len(ask_policy(folder / "grpo", PROMPT, answers=2, seed=1, max_new_tokens=1)) == 2


def test_a_run_of_several_methods_is_not_one_policy(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sample", str(folder), PROMPT]) == 2
    assert "holds several models (clip_cov, grpo): name one of them" in capsys.readouterr().err
    assert cli.main(["sample", str(folder / "grpo"), PROMPT, "-n", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("-n", "0"), "argument -n: must be a whole number of at least 1, got '0'"),
        (("--max-new-tokens", "0"), "must be a whole number of at least 1, got '0'"),
        (("--max-new-tokens", "-3"), "must be a whole number of at least 1, got '-3'"),
        (("--temperature", "0"), "must be a number above 0, got '0'"),
        (("--temperature", "nan"), "must be a number above 0, got 'nan'"),
    ],
)
def test_wrong_options_are_named(
    option: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["sample", "x", "y", *option])
    assert message in capsys.readouterr().err
