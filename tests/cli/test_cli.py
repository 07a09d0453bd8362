from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import logitless as ll
from logitless.backends import cuda, registry
from logitless.backends.base import REQUIRES
from logitless.backends.report import report
from logitless.cli import COMMANDS, main
from logitless.cli_arguments import EXAMPLES, make_parser, parse
from logitless.rl.policy import make_policy
from logitless.rl.recipe import load_recipe
from tests.support.paths import ROOT
from tests.support.plans import machine
from tests.support.recipes import tiny_recipe


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for command in ("demo", "train", "sample", "check", "doctor", "plan", "losses", "--version"):
        assert command in text


@pytest.mark.parametrize("command", EXAMPLES)
def test_help_of_a_command_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By lines that the parser takes, with keys that recipes have."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    *_, examples = capsys.readouterr().out.partition("example")
    lines = [line.strip() for line in examples.splitlines() if line.startswith("  ")]
    assert lines == EXAMPLES[command].strip().splitlines()
    for line in lines:
        program, *arguments = shlex.split(line.partition(" > ")[0])
        options = parse(arguments)
        assert (program, arguments[0]) == ("logitless", command)
        load_recipe("demo", getattr(options, "overrides", ()))


def test_every_command_has_examples() -> None:
    listed = re.findall(r"^ {4}(\w+)", make_parser().format_help(), re.MULTILINE)
    assert set(listed) == set(EXAMPLES) == set(COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from logitless import __version__

    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"logitless {__version__}\n"


def test_help_and_errors_load_nothing_heavy() -> None:
    code = (
        "import sys; from logitless.cli import main\n"
        "assert main(['train', 'nowhere.yaml']) == 2\n"
        "assert main(['demo', 'stpes=1']) == 2\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.yaml"], "recipe 'nowhere.yaml' is no file"),
        (["demo", "stpes=1"], "'stpes' is unknown; did you mean 'steps'?"),
        (["train", "demo", "--out", "x", "stpes=1"], "'stpes' is unknown; did you mean 'steps'?"),
        (["train", "demo", "steps=1", "--resume", "seed=1", "stpes=1"], "'stpes' is unknown"),
        (["demo", "methods.grpo.preset=grop"], "preset 'grop' is unknown; did you mean 'grpo'?"),
        (["demo", "task.name=sum"], "'sum' is unknown; known: sum_to_n, arithmetic, or 'module:"),
        (["demo", "task.name=sum_two_n"], "is unknown; did you mean 'sum_to_n'?"),
        (["demo", "task.name=no_such_module:Task"], "No module named 'no_such_module'"),
        (["sample", "nowhere", "hi"], "no such folder: nowhere"),
        (["check", "nowhere"], "no model there: nowhere/config.json"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    # A mistake is found before anything is written.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["demo", "--otu", "x"], ["losses", "x"], ["nothing"], []])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: logitless" in capsys.readouterr().err


def save_model(folder: Path, **options: Any) -> None:
    from transformers import CohereConfig, CohereForCausalLM

    config = CohereConfig(
        vocab_size=101, hidden_size=16, intermediate_size=24, num_hidden_layers=1, head_dim=8,
        num_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **options,
    )  # fmt: skip
    CohereForCausalLM(config).bfloat16().save_pretrained(folder)


@pytest.mark.filterwarnings("ignore")
def test_check_says_what_a_head_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path, logit_scale=0.125)
    capsys.readouterr()
    assert main(["check", str(tmp_path)]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "CohereForCausalLM, a head of 101 x 16 in bfloat16"
    found = dict(line.split(maxsplit=1) for line in lines)
    error = found.pop("error")
    assert found == {
        "logit_scale": "0.125", "softcap": "none", "bias": "none", "cut": "0 columns",
    }  # fmt: skip
    off, *words, size = error.split()
    assert " ".join(words) == "to model(...).logits, which reach"
    assert 0 < float(off) < 2**-7 * float(size)


@pytest.mark.filterwarnings("ignore")
def test_check_says_why_a_head_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path, logit_scale=-1.0)
    assert main(["check", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "CohereForCausalLM: the head's output is multiplied by -1, which is not" in error


@pytest.mark.filterwarnings("ignore")
def test_check_reads_a_model_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers would make a random head of an untied one that the folder lacks."""
    from safetensors.torch import load_file, save_file

    save_model(tmp_path, tie_word_embeddings=False)
    assert main(["check", str(tmp_path)]) == 0
    capsys.readouterr()
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    head = tensors.pop("lm_head.weight")
    for content, fault in (
        (tensors, "it lacks lm_head.weight"),
        (tensors | {"lm_head.weight": head[:99].contiguous()},
         "it has lm_head.weight [99, 16] instead of [101, 16]"),
    ):  # fmt: skip
        save_file(content, file, metadata={"format": "pt"})
        assert main(["check", str(tmp_path)]) == 2
        out, error = capsys.readouterr()
        assert not out and f"must have all tensors of its model: {fault}" in error


def test_losses_lists_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses"]) == 0
    text = capsys.readouterr().out
    names = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    assert names == list(ll.presets)
    assert "arXiv:2505.22617" in text


def test_the_page_of_losses_is_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """logitless losses --markdown > docs/losses.md"""
    assert main(["losses", "--markdown"]) == 0
    page = ROOT / "docs" / "losses.md"
    assert capsys.readouterr().out == page.read_text()


def test_advantages_lists_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advantages"]) == 0
    text = capsys.readouterr().out
    names = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    assert names == list(ll.advantages.TABLE)
    assert "arXiv:2402.03300" in text
    assert main(["advantages", "--markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "advantages.md").read_text()


def test_preference_lists_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preference"]) == 0
    text = capsys.readouterr().out
    names = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    forms = [f"dpo.{name}" for name in ll.preference.FORMS]
    assert names == [*ll.preference.TABLE, *forms]
    assert "arXiv:2305.18290" in text
    assert main(["preference", "--markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "preference.md").read_text()


def test_plan_prints(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tokens", "8192", "--hidden", "1024", "--vocab", "151936"]
    assert main(["plan", *arguments, "--budget", "512MiB"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["plan", *arguments, "--budget", "12 apples"]) == 2


def doctor(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Label -> the texts beside it, of `logitless doctor`."""
    assert main(["doctor"]) == 0
    lines: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        label, _, text = line.strip().partition("  ")
        lines.setdefault(label, []).append(text.strip())
    return lines


def reported(gpus: dict[str, str]) -> dict[str, list[str]]:
    """The same of a machine with these GPUs."""
    lines: dict[str, list[str]] = {}
    for label, text in report(gpus):
        lines.setdefault(label.strip(), []).append(text)
    return lines


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the core says of its CUDA kernels, free to change."""
    told = {"compiled": False, "emulated": False, "reason": "nvcc was not found"}
    monkeypatch.setitem(registry.BACKENDS, "cuda", cuda.backend(lambda: told, lambda index: ""))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return told


def test_doctor_says_what_serves_on_the_cpu(
    build: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = reported({}) | doctor(capsys)
    assert {"logitless", "python", "numpy", "isa", "threads"} <= {k.split()[0] for k in lines}
    assert lines["cuda kernels"] == ["not compiled: nvcc was not found"]
    for op in ("token_stats", "linear_token_stats", "linear_policy_loss"):
        assert lines[op] == ["cpu, torch"]
    assert lines["linear_sample"] == ["cpu"]
    assert lines["not cuda"] == ["the core was built without CUDA: nvcc was not found"]
    assert "TRITON_INTERPRET=1" in lines["not triton"][0]
    assert lines["GPU"][0].startswith("none: torch")
    # A build that emulates, and the interpreter: to be named, never what auto takes.
    build["emulated"] = True
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert reported({})["token_stats"] == ["cpu, cuda, triton, torch"]


def test_doctor_says_which_dtypes_are_multiplied_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, widened=lambda: frozenset({"float16", "bfloat16"}))
    assert reported({})["bfloat16 and float16"] == [
        "multiplied in float32, as logits are unless asked otherwise"
    ]
    machine(monkeypatch, widened=frozenset)
    assert not any("float16" in label for label in reported({}))


def test_doctor_says_what_serves_on_a_gpu(
    build: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = {"cuda:0": "A GPU, sm_90"}
    assert reported(gpus)["token_stats"] == ["cpu, torch", "triton, torch"]
    build |= {"compiled": True, "architectures": "80,90,100", "toolkit": "13.0"}
    lines = reported(gpus)
    assert lines["cuda kernels"] == ["for 80,90,100 by CUDA 13.0"]
    assert lines["cuda:0"] == ["A GPU, sm_90"]
    assert lines["linear_token_stats"] == ["cpu, torch", "cuda, triton, torch"]
    of_tokens = "policy_loss, batch_stats, covariance, rollout_weights"
    assert lines["linear_sample"] == ["cpu", "cuda, triton"]
    assert lines["tail_mass"] == ["cpu", "cuda, triton"]
    # the first is what serves
    assert lines[of_tokens] == ["cpu, torch", "cuda, triton, torch"]
    assert lines["float64"] == ["torch"]
    refusing = cuda.backend(lambda: build, lambda index: "no code for sm_75")
    monkeypatch.setitem(registry.BACKENDS, "cuda", refusing)
    lines = reported(gpus)
    assert lines["token_stats"] == ["cpu, torch", "triton, torch"]
    assert lines["linear_sample"] == ["cpu", "triton"]
    assert lines["tail_mass"] == ["cpu", "triton"]
    assert lines[of_tokens] == ["cpu, torch", "triton, torch"]
    assert "no code for sm_75" in lines["not cuda"]


def test_doctor_lists_a_backend_that_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    added = replace(
        registry.get("cpu"), name="added", topk=None, absent={"topk": "it keeps no entries"}
    )
    monkeypatch.setitem(registry.BACKENDS, "added", added)
    lines = reported({"cuda:0": "A GPU, sm_90"})
    assert lines["token_stats"][0] == "cpu, torch, added"
    assert lines["tail_mass"][0] == "cpu"
    assert lines["not added"] == ["tail_mass: it keeps no entries", "it serves CPU tensors"]


def test_doctor_lists_every_op_and_option_of_one(build: dict[str, Any]) -> None:
    """And of each backend that lacks one, the sentence that a call with it raises."""
    build |= {"compiled": True, "architectures": "80,90,100", "toolkit": "13.0"}
    both = reported({"cuda:0": "A GPU, sm_90"})
    for need in REQUIRES:
        named = next(label for label in both if label.split(", ")[0] == need)
        assert len(both[named]) == 2
        for served, device in zip(both[named], ("cpu", "cuda:0"), strict=True):
            for backend in registry.BACKENDS.values():
                support = backend.supports(need, device)
                assert (backend.name in served.split(", ")) == support.ok
                if support.ok or backend.why_not(device, "float32"):
                    continue
                said = [line for line in both[f"not {backend.name}"] if support.reason in line]
                assert all(need in line.split(": ")[0].split(", ") for line in said) and said


def test_doctor_works_without_torch() -> None:
    """A machine without torch, played by an import that fails."""
    code = (
        "import importlib.util, sys\n"
        "found = importlib.util.find_spec\n"
        "hidden = lambda name, *a: None if name in ('torch', 'triton') else found(name, *a)\n"
        "importlib.util.find_spec = hidden\n"
        "from logitless.cli import main\n"
        "assert main(['doctor']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not torch" in done.stdout
    assert "torch is not installed: pip install 'logitless[torch]'" in done.stdout


def test_sample_draws_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_policy(tiny_recipe(tmp_path).model, seed=0).save(tmp_path / "model")
    capsys.readouterr()
    arguments = ["sample", str(tmp_path / "model"), "sum 8:", "-n", "3", "--max-new-tokens", "4"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert first.count("\n") >= 3
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
