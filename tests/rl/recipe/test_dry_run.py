"""A dry run says what a run would be, refuses what a run would refuse, and writes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from logitless.cli import main
from logitless.rl.demo.job import run
from logitless.rl.recipe import load_recipe
from tests.support.recipes import tiny_file, tiny_recipe


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def printed(
    capsys: pytest.CaptureFixture[str], *arguments: str | os.PathLike[str]
) -> tuple[str, dict[str, str]]:
    """The recipe as text, and what would be run by its label."""
    assert main([*map(os.fspath, arguments), "--dry-run"]) == 0
    recipe, _, plan = capsys.readouterr().out.partition("\n\n")
    *lines, last = plan.splitlines()
    assert last == "nothing was written"
    found: dict[str, str] = {}
    for line in lines:
        label, _, text = line.partition("  ")
        label = f"method {text.strip().partition(':')[0]}" if label == "method" else label
        found[label] = text.strip()
    return recipe, found


def test_the_recipe_is_whole_and_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tiny_file(tmp_path), tmp_path / "run"
    before = files(tmp_path)
    text, plan = printed(capsys, "train", path, "steps=7", "--out", out)
    assert files(tmp_path) == before
    values = yaml.safe_load(text)
    assert values["update"]["beta2"] == 0.95 and values["evaluation"]["file"] is None
    again = tmp_path / "again.yaml"
    again.write_text(text, "utf-8")
    assert load_recipe(str(again)) == tiny_recipe(tmp_path, "steps=7")

    assert plan["folder"] == f"{out}, a new run"
    # embedding and head 384 x 16 each; a layer of 4 x 16^2 + 3 x 16 x 32 and norms of 3 x 16
    everything = 2 * 384 * 16 + 4 * 16**2 + 3 * 16 * 32 + 3 * 16
    assert plan["model"] == (
        f"LlamaForCausalLM, {everything:,} parameters, of which {everything - 384 * 16:,} are "
        "trained; a head of 384 x 16"
    )
    assert plan["each step"] == (
        "4 prompts x 8 answers = 32 of up to 4 tokens; 2 optimizer steps on 16 answers each, "
        "in micro-batches of 16"
    )
    _, cut = printed(capsys, "train", path, "update.micro_tokens=64", "--out", out)
    assert cut["each step"].endswith("in micro-batches of up to 64 tokens")
    assert plan["warm-up"] == "60 + 2 supervised steps"
    assert plan["method grpo"].startswith("grpo: steps 1 to 7; advantage group_std; PolicyLossSpec")
    assert "fraction=0.2" in plan["method clip_cov"]


def test_what_a_folder_holds_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = tiny_recipe(tmp_path, "steps=2", "compare_repeats=0", "methods={grpo: {preset: grpo}}")
    options = ("compare_repeats=0", "methods={grpo: {preset: grpo}, mine: {preset: ppo}}")
    path, out = tiny_file(tmp_path), tmp_path / "run"
    assert run(one, out) == 0
    capsys.readouterr()
    before = files(tmp_path)
    _, plan = printed(capsys, "train", path, "steps=5", *options, "--out", out, "--resume")
    assert plan["folder"] == f"{out}, which goes on with grpo, warmup"
    assert plan["warm-up"] == "done"
    assert plan["method grpo"].startswith("grpo: steps 3 to 5;")
    assert plan["method mine"].startswith("mine: steps 1 to 5;")
    _, plan = printed(capsys, "train", path, "steps=2", *options, "--out", out, "--resume")
    assert plan["method grpo"].startswith("grpo: done;")
    _, plan = printed(capsys, "train", path, *options, "--out", out, "--overwrite")
    assert plan["folder"] == f"{out}, of which grpo, warmup is deleted first"
    assert plan["method grpo"].startswith("grpo: steps 1 to 4;")
    assert main(["train", str(path), *options, "--out", str(out), "--dry-run"]) == 2
    assert "holds a run (grpo, warmup): pass --resume" in capsys.readouterr().err
    changed = ["rollout.group=4", "--resume", "--dry-run"]
    assert main(["train", str(path), *options, "--out", str(out), *changed]) == 2
    assert "rollout.group: 8 before, 4 now" in capsys.readouterr().err
    assert files(tmp_path) == before


PROMPTS, CHAT = (f"task={{prompts: {name}.jsonl, reward: 'r.py:score'}}" for name in ("p", "chat"))
COLD = ("warmup.steps=0", "warmup.full_steps=0")
HELD_OUT = ("evaluation.every=1", "evaluation.file=absent.jsonl")
FEW_PLACES = ("model.max_positions=10", "rollout.max_new_tokens=9")
RATES = ("update.body_lr=0", "update.head_lr=0")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model={path: empty}",), "can be read from empty: it has no config.json"),
        (("task.name=sum_two_n",), "did you mean 'sum_to_n'?"),
        (("update.advantage=best",), "'update.advantage' must be one of"),
        (RATES, "leave nothing to train: they are 0.0, 0.0"),
        ((PROMPTS,), "solution(rng, prompt), and a file of prompts has none"),
        (("model.tokenizer=empty",), "'model.tokenizer' must be qwen, bytes, or a tokenizer's"),
        (("task.options={foo: 1}",), "recipe key 'task.options' with task 'sum_to_n': "),
        (("rollout.chat_template=true",), "'rollout.chat_template' must be false with a tokenizer"),
        ((CHAT, *COLD), "got the messages [{'role': 'user'"),
        ((PROMPTS, *COLD, *HELD_OUT), "evaluation.file: no such file: absent.jsonl"),
        ((PROMPTS, *COLD, *FEW_PLACES), "a prompt of 2 tokens with an answer of up to 9 must"),
        (("model.max_positions=8",), "a model must have at least 9 positions, got 8"),
        (("model.path=model",), "got model.tokenizer=bytes, model.vocab_size=384, model.hidden"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_what_a_run_refuses_is_refused_before_anything_is_written(
    overrides: tuple[str, ...],
    message: str,
    dry: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "hi"}\n', "utf-8")
    chat = '{"prompt": [{"role": "user", "content": "hi"}]}'
    (tmp_path / "chat.jsonl").write_text('{"prompt": "hi"}\n' + chat, "utf-8")
    (tmp_path / "r.py").write_text("def score(prompt, completion):\n    return 0.0\n", "utf-8")
    arguments = ["train", str(tiny_file(tmp_path)), *overrides, "--out", "run"]
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main([*arguments, *(["--dry-run"] if dry else [])]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
