"""The bundled reward of steps that a model and its reference imply, by full logits in plain torch,
and in a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from logitless.cli import main  # noqa: E402
from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.policy import Policy, load_policy, make_policy  # noqa: E402
from logitless.rl.recipe import STEPWISE, RewardRecipe  # noqa: E402
from logitless.rl.tasks import BUNDLED, Prompt, load_task, score  # noqa: E402
from logitless.rl.tasks.bundled.implicit_prm import ends_of  # noqa: E402
from logitless.rl.tracking import completions, metrics  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402
from tests.support.rl.runs_alike import assert_rows_alike  # noqa: E402
from tests.support.workers import torchrun  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)
PROMPTS = ["sum 8:", "a much longer prompt, which pads the others:", "é", "sum 9:", "sum 9:"]
TEXTS = ["35\n1 + 2\n", "", "aé€b🙂\n\nc", "\n", "no line at all, and the longest"]
# fp32 forwards beside fp64 ones; log-probs are of order 5
CLOSE = {"rel": 0, "abs": 2e-5}


def policy_of(folder: Path, seed: int) -> Policy:
    """Far from uniform."""
    policy = make_policy(tiny_recipe(folder).model, seed)
    with torch.no_grad():
        policy.weight.mul_(20.0)
    policy.tokenizer.chat_template = TEMPLATE
    return policy


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its reference."""
    folder = tmp_path_factory.mktemp("implicit")
    for seed, name in enumerate(("model", "reference")):
        policy_of(folder, seed).save(folder / name)
    return folder


def options(home: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(home / "model"), "reference": str(home / "reference"), **more}


def made(home: Path, **more: Any) -> Any:
    return BUNDLED["implicit_prm"](**options(home, **more))


def asked(reward: Any, prompts: Sequence[Any] = PROMPTS, texts: Sequence[str] = TEXTS) -> Any:
    return reward(prompts=prompts, completions=texts, rows=[{}] * len(texts))


def plain(home: Path, prompt: str, text: str) -> list[float]:
    """log p_model - log p_reference of each token of an answer, one sequence at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logp = []
    for name in ("model", "reference"):
        tokenizer = AutoTokenizer.from_pretrained(home / name)
        model = AutoModelForCausalLM.from_pretrained(home / name).double().eval()
        before, answer = (tokenizer(x, add_special_tokens=False).input_ids for x in (prompt, text))
        with torch.no_grad():
            logits = model(torch.tensor([[*before, *answer]])).logits[0].double()
        found = logits.log_softmax(-1)[len(before) - 1 : -1] if answer else logits[:0]
        logp.append([float(row[token]) for row, token in zip(found, answer, strict=True)])
    return [a - b for a, b in zip(*logp, strict=True)]


def of_places(ratios: list[float], text: str, places: Sequence[int]) -> list[tuple[int, float]]:
    """A token is a byte."""
    found, before = [], 0
    for place in places:
        end = len(text[:place].encode())
        found.append((place, 0.05 * math.fsum(ratios[before:end])))
        before = end
    return found


@pytest.mark.parametrize(
    ("by", "places"),
    [
        ("answer", [[9], [0], [8], [1], [31]]),
        ("line", [[3, 9], [0], [6, 7, 8], [1], [31]]),
        ("token", [range(1, 10), [0], range(1, 9), [1], range(1, 32)]),
    ],
)
def test_rewards_are_those_of_full_logits(home: Path, by: str, places: list[Sequence[int]]) -> None:
    found = asked(made(home, by=by))
    largest = 0.0
    for prompt, text, own, ends in zip(PROMPTS, TEXTS, found, places, strict=True):
        expected = of_places(plain(home, prompt, text), text, ends)
        assert [end for end, _ in own] == [end for end, _ in expected]
        assert [r for _, r in own] == pytest.approx([r for _, r in expected], **CLOSE)
        largest = max(largest, *(abs(r) for _, r in own))
    assert largest > 0.05


def test_steps_add_up_to_the_answer(home: Path) -> None:
    answers = asked(made(home, by="answer", beta=2.0))
    for by in ("line", "token"):
        for steps, whole in zip(asked(made(home, by=by, beta=2.0)), answers, strict=True):
            assert math.fsum(r for _, r in steps) == pytest.approx(whole[0][1], abs=1e-9)
            assert steps[-1][0] == whole[0][0]
    assert [len(x) for x in answers] == [1] * len(TEXTS)


def test_neither_other_answers_nor_their_number_at_once_matter(home: Path) -> None:
    """Padding before prompts and behind answers is in no reward."""
    together = asked(made(home, by="token", micro_tokens=100_000))
    for found in (
        asked(made(home, by="token", micro_tokens=1)),
        asked(made(home, by="token", micro_tokens=90)),
        [
            asked(made(home, by="token"), [prompt], [text])[0]
            for prompt, text in zip(PROMPTS, TEXTS, strict=True)
        ],
    ):
        assert [[end for end, _ in x] for x in found] == [[end for end, _ in x] for x in together]
        for one, other in zip(found, together, strict=True):
            assert [r for _, r in one] == pytest.approx([r for _, r in other], rel=0, abs=1e-6)


def test_answers_without_a_text_alone(home: Path) -> None:
    assert asked(made(home), ["sum 8:"] * 2, ["", ""]) == [[(0, 0.0)]] * 2


def test_a_template_stands_around_the_prompt(home: Path) -> None:
    inside = "<system>Be short.<user>sum 8:<answer>"
    expected = asked(made(home), [inside], ["35\n"])
    reward = made(home, chat_template=True, system_prompt="Be short.")
    assert asked(reward, ["sum 8:"], ["35\n"]) == expected
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "sum 8:"}]
    assert asked(made(home), [turns], ["35\n"]) == expected
    assert asked(made(home), ["sum 8:"], ["35\n"]) != expected


@pytest.mark.parametrize(
    ("text", "spans", "by", "expected"),
    [
        # one token of two lines' ends, and one that goes on behind an end
        ("a\n\nb", [(0, 1), (1, 3), (3, 4)], "line", [(3, 2), (4, 3)]),
        ("a\nb\nc", [(0, 1), (1, 3), (3, 4), (4, 5)], "line", [(2, 2), (4, 3), (5, 4)]),
        # a line without a token of its own before the first, and a token without a place
        ("\nab", [(1, 2), (2, 3)], "line", [(3, 2)]),
        ("\nab", [(1, 2), (2, 3)], "token", [(2, 1), (3, 2)]),
        ("ab ", [(0, 0), (0, 1), (1, 2), (3, 3)], "token", [(1, 2), (2, 3), (3, 4)]),
        ("ab\n", [(0, 1), (1, 2), (3, 3)], "line", [(3, 3)]),
        # what the tokenizer has dropped at the end
        ("ab  ", [(0, 1), (1, 2)], "token", [(1, 1), (4, 2)]),
        ("\n\n", [], "line", [(2, 0)]),
        ("", [], "token", [(0, 0)]),
    ],
)
def test_every_step_has_tokens(
    text: str, spans: list[tuple[int, int]], by: str, expected: list[tuple[int, int]]
) -> None:
    assert ends_of(text, spans, by) == expected


def of_bytes(text: str) -> Any:
    return lambda i, places: [len(text[:place].encode()) for place in places]


def test_with_steps_and_without(home: Path) -> None:
    """Without the key an answer's reward is the sum, wherever its steps end."""
    text = "35\n1 + 2\n"
    (steps,) = asked(made(home), PROMPTS[:1], [text])
    rewards = [reward for _, reward in steps]
    assert len(set(rewards)) == 2 and "implicit_prm" in STEPWISE
    for key, expected in (("min", min(rewards)), ("sum", sum(rewards)), (None, sum(rewards))):
        credit = RewardRecipe("implicit_prm", options=options(home), steps=key)
        task = load_task("sum_to_n", {}, rewards={"credit": credit})
        prompt = Prompt(PROMPTS[0], 8)
        found = score(task, [prompt], [text], token_ends=of_bytes(text))
        assert found.columns["credit"].item() == pytest.approx(expected, abs=1e-6)
        if key is None:
            assert found.steps is None
        else:
            assert found.steps is not None
            assert [end for end, _ in found.steps[0]] == [3, 9]
            assert [r for _, r in found.steps[0]] == pytest.approx(rewards, abs=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"beta": 0}, "beta must be above 0, got 0"),
        ({"beta": -0.1}, "beta must be above 0, got -0.1"),
        ({"beta": math.nan}, "beta must be a finite number, got nan"),
        ({"by": "step"}, "by must be one of line, answer, token, got 'step'"),
        ({"micro_tokens": 0}, "micro_tokens must be a whole number of at least 1, got 0"),
        ({"system_prompt": "Be short."}, "system_prompt needs chat_template=true"),
        ({"device": "nowhere"}, "device must be one that torch has here, got 'nowhere'"),
        ({"betta": 1}, "unexpected keyword argument 'betta'"),
    ],
)
def test_options_are_checked(home: Path, more: dict[str, Any], message: str) -> None:
    credit = RewardRecipe("implicit_prm", options=options(home, **more))
    with pytest.raises(ValueError, match=rf"a\.function 'implicit_prm': .*{message}"):
        load_task("sum_to_n", {}, rewards={"a": credit})


def test_other_tokenizers_are_refused(home: Path, tmp_path: Path) -> None:
    policy = policy_of(tmp_path, 0)
    policy.tokenizer.add_tokens(["<step>"])
    policy.save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"must have one tokenizer, got .*model and .*other"):
        made(home, reference=str(tmp_path / "other"))


def test_tokens_without_places_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(load_policy(home / "model").tokenizer)
    monkeypatch.setattr(kind, "is_fast", False)
    with pytest.raises(ValueError, match="the tokenizer must be a fast one"):
        made(home)


def test_a_template_that_is_missing_is_refused(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, 0)
    policy.tokenizer.chat_template = None
    policy.save(tmp_path / "model")
    both = {"model": str(tmp_path / "model"), "reference": str(tmp_path / "model")}
    with pytest.raises(ValueError, match="messages need a tokenizer with a chat template"):
        BUNDLED["implicit_prm"](**both, chat_template=True)


def test_answers_that_are_too_long_are_refused(home: Path) -> None:
    with pytest.raises(ValueError, match="the model's 128 positions, got 130"):
        asked(made(home), ["sum 8:", "sum 9:"], ["3", 124 * "3"])


@pytest.mark.parametrize("option", ["model", "reference"])
def test_a_missing_folder_is_an_error_before_anything_is_written(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    given = options(home) | {option: str(home / "nothing")}
    (home / "nothing").mkdir(exist_ok=True)
    recipe = tiny_recipe(tmp_path)
    assert recipe.task.name == "sum_to_n"
    change = f"task.rewards={{credit: {{function: implicit_prm, options: {given}}}}}"
    for more in ([], ["--dry-run"]):
        command = ["train", str(tmp_path / "tiny.yaml"), change, "--out", str(tmp_path / "run")]
        assert main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert "task.rewards.credit.function 'implicit_prm': no model can be read from" in error
        assert not (tmp_path / "run").exists()


def test_the_models_are_on_the_policys_device(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def noted(folder: str, *, draw_padding: bool, device: str) -> Policy:
        given.append(device)
        return load_policy(folder, draw_padding)

    monkeypatch.setattr("logitless.rl.model_pair.load_policy", noted)
    monkeypatch.setattr(BUNDLED["implicit_prm"], "_check_device", lambda self: None)
    for more in ({}, {"device": "cpu"}):
        credit = RewardRecipe("implicit_prm", options=options(home, **more))
        load_task("sum_to_n", {}, rewards={"credit": credit}, device="cuda")
    assert given == ["cuda"] * 2 + ["cpu"] * 2


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_ranks_are_one_process(home: Path, tmp_path: Path) -> None:
    credit = f"{{function: implicit_prm, options: {options(home)}, steps: min}}"
    more = (
        "compare_repeats=0", "entropy_change_every=0", f"task.rewards={{credit: {credit}}}",
        "methods={pure: {preset: grpo, advantage: pure}}",
    )  # fmt: skip
    assert run(tiny_recipe(tmp_path, *more), tmp_path / "alone") == 0
    done = torchrun.forked(2, "train", "tiny.yaml", *more, "--out", "pair", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    both = [tmp_path / name / "pure" for name in ("pair", "alone")]
    answers = [metrics.read(at / completions.FILE) for at in both]
    for mine, other in zip(*answers, strict=True):
        for key in ("step", "prompt", "completion", "tokens"):
            assert mine[key] == other[key]
        # an answer's neighbours at the models are others: its log-probs are rounded differently
        assert mine["reward"] == pytest.approx(other["reward"], rel=0, abs=1e-6)
    rows = [metrics.read(at / metrics.FILE) for at in both]
    assert len(rows[0]) == 4
    for mine, other in zip(*rows, strict=True):
        assert_rows_alike(mine, other)


def test_it_trains(home: Path, tmp_path: Path) -> None:
    """A policy that gets the credit of its tokens does more of what the model prefers."""
    given = options(home, by="token", beta=0.5)
    recipe = tiny_recipe(
        tmp_path, "steps=12", "compare_repeats=0", "entropy_change_every=0", "checkpoint_every=12",
        f"task.rewards={{credit: {{function: implicit_prm, options: {given}, steps: sum}}}}",
        "methods={process: {preset: grpo, advantage: process}}",
        "rollout={prompts: 8, group: 8, max_new_tokens: 4}", "update.body_lr=0.003",
        "update.head_lr=0.01",
    )  # fmt: skip
    assert run(recipe, tmp_path / "run") == 0
    rows = metrics.read(tmp_path / "run" / "process" / metrics.FILE)
    rewards = [row["reward/credit"] for row in rows]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.8, rewards
    reward = made(home, by="token", beta=0.5)
    lines = metrics.read(tmp_path / "run" / "process" / completions.FILE)[:16]
    texts = [row["completion"] for row in lines]
    for row, steps in zip(lines, asked(reward, [x["prompt"] for x in lines], texts), strict=True):
        assert [r for _, r in row["steps"]] == pytest.approx([r for _, r in steps], abs=1e-4)
        # the end token has no credit of its own
        assert row["steps"][-1][0] == row["tokens"]
        assert row["reward"] == pytest.approx(sum(r for _, r in steps), abs=1e-4)
