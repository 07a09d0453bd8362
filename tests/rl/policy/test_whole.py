"""A model is read whole or not at all: no tensor is made up in silence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from logitless.cli import main  # noqa: E402
from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.policy import load_policy, make_policy, make_tokenizer  # noqa: E402
from logitless.rl.tracking import checkpoint  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402

LOST = "model.layers.0.mlp.up_proj.weight"
OPTIONS = ("steps=2", "compare_repeats=0", "methods={grpo: {preset: grpo}}")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make_policy(tiny_recipe(folder).model, seed=0).save(folder / "model")
    return folder / "model"


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change(folder: Path, without: str, **more: Any) -> None:
    """Its file, without a tensor and with others."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[without]
    save_file(tensors | more, file, metadata={"format": "pt"})


def test_a_missing_tensor_is_named_with_its_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(model, LOST)
    with pytest.raises(ValueError, match=rf"{model} must have all tensors .*: it lacks {LOST}$"):
        load_policy(model)
    assert main(["sample", str(model), "sum 8:"]) == 2
    assert f"it lacks {LOST}" in capsys.readouterr().err
    recipe = tiny_recipe(
        tmp_path, *OPTIONS, f"model={{path: {model}}}", "warmup.steps=0", "warmup.full_steps=0"
    )
    with pytest.raises(ValueError, match=f"it lacks {LOST}"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tensor_of_another_shape_is_named_with_both(model: Path) -> None:
    change(model, LOST, **{LOST: torch.zeros(32, 8)})
    with pytest.raises(ValueError, match=rf"it has {LOST} \[32, 8\] instead of \[32, 16\]$"):
        load_policy(model)


def test_many_are_counted(model: Path) -> None:
    save_file(
        {"lm_head.weight": torch.zeros(384, 16)}, model / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"it lacks (\S+, ){4}\S+ and 6 more$"):
        load_policy(model)


def test_a_file_that_is_cut_off_is_no_model(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(FileNotFoundError, match=f"no model can be read from {model}: "):
        load_policy(model)


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "Gemma2ForCausalLM", "GPT2LMHeadModel"])
def test_tied_heads_and_computed_buffers_are_not_missed(tmp_path: Path, kind: str) -> None:
    import transformers

    made = getattr(transformers, kind)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    options = {"vocab_size": 384, "tie_word_embeddings": True, **sizes}
    if kind != "GPT2LMHeadModel":
        options |= {"intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8}
    policy = made(made.config_class(**options))
    policy.save_pretrained(tmp_path)
    make_tokenizer("bytes").save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in held and not any("inv_freq" in name for name in held)
    again = load_policy(tmp_path)
    assert again.tied and torch.equal(again.weight[:258], policy.lm_head.weight[:258])


def test_a_warm_up_with_a_missing_tensor_is_no_start(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(tiny_recipe(tmp_path, *OPTIONS), out) == 0
    warmed = checkpoint.latest(out / "warmup")
    assert warmed is not None
    change(warmed, LOST)
    with pytest.raises(ValueError, match=rf"no checkpoint can be read: .*it lacks {LOST}"):
        run(tiny_recipe(tmp_path, "steps=2", "compare_repeats=0"), out, resume=True)
