"""Adapters of peft are trained in the model's place: they alone change, are saved and resumed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from logitless.cli import main
from logitless.rl.answers import task_of
from logitless.rl.demo.job import run, warmed_up
from logitless.rl.engine import LocalEngine
from logitless.rl.policy import Policy, load_policy, make_policy
from logitless.rl.policy import lora as adapters
from logitless.rl.recipe import LossRecipe, Recipe, ReferenceRecipe, make_spec
from logitless.rl.rollout import Rollout, sample
from logitless.rl.tracking import checkpoint, metrics
from logitless.rl.tracking.interrupt import StopRequest
from logitless.rl.tracking.progress import Progress
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import (
    Packed,
    batch_options,
    loss_backward,
    pack,
    update_policy,
    with_reference,
)
from logitless.rl.update.reference import log_probs
from tests.support.recipes import tiny_file, tiny_recipe

FILES = {"adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"}


@pytest.fixture(scope="module")
def base(model: Path) -> Path:
    """What adapters are put into."""
    pytest.importorskip("peft", reason="adapters are peft's")
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that knows the task."""
    folder = tmp_path_factory.mktemp("base")
    recipe = tiny_recipe(folder)
    policy = make_policy(recipe.model, 0)
    with StopRequest() as stop:
        warmed_up(policy, recipe, task_of(recipe), folder / "w", Progress(1), stop, False)
    policy.save(folder / "model")
    return folder / "model"


def overrides(base: Path, *more: str) -> tuple[str, ...]:
    return (
        f"model={{path: {base}}}", "warmup.steps=0", "warmup.full_steps=0", "compare_repeats=0",
        "lora.rank=4", "lora.targets=[all-linear, lm_head]", "update.body_lr=0.01",
        "update.head_lr=0.01", *more,
    )  # fmt: skip


def lora_recipe(folder: Path, base: Path, *more: str) -> Recipe:
    return tiny_recipe(folder, *overrides(base, *more))


def policy_of(recipe: Recipe) -> Policy:
    return make_policy(recipe.model, recipe.seed, recipe.lora)


def draw(policy: Policy) -> Rollout:
    return sample(
        policy, policy.encode(["sum 8:", "sum 10:"]), group=4, max_new_tokens=4, temperature=1.0,
        seed=0, step=0, clock=Stopwatch(),
    )  # fmt: skip


def others(policy: Policy) -> dict[str, Tensor]:
    """The weights that are no adapter's, by their names without adapters."""
    own = adapters.adapters(policy.model)
    state = policy.model.state_dict()
    return {n.replace(".base_layer", ""): state[n].clone() for n in state if n not in own}


def randomise(policy: Policy) -> None:
    generator = torch.Generator().manual_seed(1)
    for p in adapters.adapters(policy.model).values():
        p.detach().copy_(0.05 * torch.randn(p.shape, generator=generator))


def test_new_adapters_leave_the_model_as_it_is(base: Path, tmp_path: Path) -> None:
    policy = policy_of(lora_recipe(tmp_path, base))
    names = list(adapters.adapters(policy.model))
    # seven layers of the body and the head, each with A and B
    assert len(names) == 16 and sum("lm_head" in name for name in names) == 2
    assert {p.requires_grad for p in policy.model.parameters()} == {True, False}
    plain = draw(load_policy(base))
    assert torch.equal(draw(policy).ids, plain.ids)
    assert torch.equal(draw(policy).logp, plain.logp)


def ppo_backward(recipe: Recipe) -> tuple[Policy, Rollout, Packed]:
    """Gradients of adapters that are no longer new, on a rollout of theirs."""
    policy = policy_of(recipe)
    engine = LocalEngine(policy, recipe.update)
    randomise(policy)
    rollout = draw(policy)
    packed = pack(rollout, torch.linspace(-2, 2, 8), torch.arange(8))
    spec = make_spec("ppo", LossRecipe("ppo"))
    shared = batch_options(packed, spec, 0, 0)
    loss_backward(engine, packed, spec, recipe, shared, Stopwatch())
    return policy, rollout, packed


@pytest.mark.parametrize("padding", [True, False])
def test_log_probs_and_gradients_are_those_of_full_logits(
    base: Path, tmp_path: Path, padding: bool
) -> None:
    recipe = lora_recipe(tmp_path, base, f"model.draw_padding={str(padding).lower()}")
    policy, rollout, packed = ppo_backward(recipe)
    ours = {n: p.grad.clone() for n, p in adapters.adapters(policy.model).items()}  # type: ignore[union-attr]
    policy.model.zero_grad()

    positions = (rollout.attention.long().cumsum(1) - 1).clamp(min=0)
    logits = policy.model(
        rollout.ids, attention_mask=rollout.attention.long(), position_ids=positions
    ).logits
    states = logits[:, rollout.prompt_length - 1 : -1][rollout.mask]
    if policy.padding is not None:
        states = states + policy.padding
    logp = states.log_softmax(-1).gather(1, packed.targets[:, None])[:, 0]
    # plain float32 is as far from the truth
    torch.testing.assert_close(logp.detach(), packed.old_logp, atol=4e-6, rtol=0)
    (-(logp - packed.old_logp).exp() * packed.advantages).mean().backward()
    assert len(ours) == 16
    for name, p in adapters.adapters(policy.model).items():
        assert ours[name].any()
        torch.testing.assert_close(ours[name], p.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("more", "most"), [("update.tail_mass=1e-3", 1e-2), ("update.gradient_checkpointing=true", 0.0)]
)
def test_what_saves_memory_keeps_the_gradients(
    base: Path, tmp_path: Path, more: str, most: float
) -> None:
    found = []
    for options in ((), (more,)):
        policy, _, _ = ppo_backward(lora_recipe(tmp_path, base, *options))
        gradients = [p.grad for p in adapters.adapters(policy.model).values()]
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    exact, saved = found
    assert len(exact) == 4 * (4 * 32 + 3 * 48 + 400)
    assert float((exact - saved).norm()) <= most * float(exact.norm())
    assert torch.equal(exact, saved) == (most == 0)


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of 6 steps with a KL term."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(lora_recipe(folder, base, "steps=6", *KL), folder / "run") == 0
    return folder / "run"


KL = ("methods.grpo.change={kl: {coefficient: 0.05, estimator: k3}}", "reference.kind=frozen")


def test_adapters_alone_are_trained_and_saved(whole: Path, base: Path) -> None:
    first = [metrics.read(whole / name / "metrics.jsonl")[0] for name in ("grpo", "clip_cov")]
    assert first[0]["reward"] == first[1]["reward"] > 0
    for name in ("grpo", "clip_cov"):
        saved = checkpoint.latest(whole / name)
        assert saved is not None
        files = {path.name for path in saved.iterdir()}
        assert files >= FILES and "model.safetensors" not in files
        policy, start = load_policy(saved), load_policy(base)
        for key, value in others(policy).items():
            assert torch.equal(value, start.model.state_dict()[key]), key
        # B is 0 in the beginning
        moved = [p for n, p in adapters.adapters(policy.model).items() if "lora_B" in n]
        assert len(moved) == 8 and all(p.any() for p in moved)
    rows = metrics.read(whole / "grpo" / "metrics.jsonl")
    assert 0 < rows[0]["actor/kl_loss"] < rows[-1]["actor/kl_loss"]
    assert max(row["logp_gap"] for row in rows) < 1e-4


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    clocks = ("seconds", "tokens_per_second", "peak_memory_bytes")
    return [{k: v for k, v in row.items() if not k.startswith(clocks)} for row in rows]


def test_a_resumed_run_is_the_same_bit_for_bit(whole: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(lora_recipe(tmp_path, base, "steps=2", *KL), out) == 0
    metrics.append(out / "grpo" / "metrics.jsonl", {"step": 2, "reward": -1.0})
    assert run(lora_recipe(tmp_path, base, "steps=6", *KL), out, resume=True) == 0
    for name in ("grpo", "clip_cov"):
        once = metrics.read(whole / name / "metrics.jsonl")
        assert timeless(metrics.read(out / name / "metrics.jsonl")) == timeless(once)
        for file in ("adapter_model.safetensors", "optimizer.safetensors"):
            saved, expected = (checkpoint.latest(f / name) for f in (out, whole))
            assert saved is not None and expected is not None
            assert (saved / file).read_bytes() == (expected / file).read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_peft_reads_a_checkpoint(whole: Path, base: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    saved = checkpoint.latest(whole / "grpo")
    assert saved is not None
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(saved))
    ids = torch.arange(8)[None]
    ours = load_policy(saved)
    assert ours.lora.base_model_name_or_path == str(base.resolve())
    with torch.no_grad():
        expected = ours.model(ids).logits
        assert torch.equal(theirs(ids).logits, expected)
        assert not torch.allclose(load_policy(base).model(ids).logits, expected, atol=1e-3)


def test_a_checkpoint_with_a_missing_tensor_is_an_error(whole: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved = checkpoint.latest(whole / "grpo")
    assert saved is not None
    policy = load_policy(saved)
    policy.save(tmp_path)
    tensors = load_file(tmp_path / adapters.FILE)
    name = "base_model.model.lm_head.lora_A.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, tmp_path / adapters.FILE)
    with pytest.raises(ValueError, match=rf"must have {name}, which is missing"):
        policy.load_weights(tmp_path)


def test_the_reference_is_the_base_and_costs_no_second_model(base: Path, tmp_path: Path) -> None:
    recipe = lora_recipe(tmp_path, base)
    policy = policy_of(recipe)
    engine = LocalEngine(policy, recipe.update, reference=ReferenceRecipe())
    rollout = draw(policy)
    start = rollout.logp.clone()
    spec, advantages = make_spec("grpo", LossRecipe("grpo")), torch.linspace(-2, 2, 8)
    for step in range(3):
        update_policy(engine, rollout, advantages, spec, recipe, step, Stopwatch())
    rollout = with_reference(engine, rollout, recipe, Stopwatch())
    torch.testing.assert_close(rollout.ref_logp, start, atol=4e-6, rtol=0)
    moved = log_probs(policy, rollout, recipe) - start[rollout.mask]
    assert moved.abs().max() > 0.01
    engine.save(tmp_path)
    assert not (tmp_path / "reference.safetensors").exists()
    held = sum(own.numel() for own, _ in engine.reference._pairs.values())  # type: ignore[union-attr]
    assert held == sum(p.numel() for p in adapters.adapters(policy.model).values())


def test_commands_read_adapters(
    whole: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(whole / "grpo"), "sum 8:", "-n", "2", "--max-new-tokens", "4"]) == 0
    assert main(["eval", str(whole), "evaluation.prompts=2", "evaluation.group=2"]) == 0
    capsys.readouterr()
    out = ("--out", str(tmp_path / "new"))
    assert main(["train", str(tiny_file(tmp_path)), *overrides(base), "--dry-run", *out]) == 0
    # r = 4 of (in + out) features: q, k, v, o of 16, three of 16 and 32, the head of 16 and 384
    trained = 4 * (4 * 32 + 3 * 48 + 400)
    assert f"of which {trained:,} are trained" in capsys.readouterr().out
    adapted = f"model={{path: {checkpoint.latest(whole / 'grpo')}}}"
    assert main(["train", str(tiny_file(tmp_path)), *overrides(base), adapted, *out]) == 2
    assert "'model.path' must be a whole model" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("lora.targets=[q_prj]", "'lora.targets' must name linear layers of Llama.*got 'q_prj'; "),
        ("lora.targets=[]", "'lora.targets' must name at least one layer"),
        ("lora.targets=q_proj", "'lora.targets' must be a list, got 'q_proj'"),
        ("lora.rank=-1", "'lora.rank' must be at least 0, got -1"),
        ("lora.rank=0", "'lora.rank' must be above 0 with other keys of lora"),
        ("lora.alpha=0", "'lora.alpha' must be above 0, got 0"),
        ("lora.dropout=0.1", "'lora.dropout' must be 0, got 0.1"),
        ("model.path=null", "'lora.rank' needs model.path"),
        ("warmup.steps=3", "'warmup.steps' must be 0 with lora.rank = 4"),
        ("update.embedding_lr=0.1", "'update.embedding_lr' must be 0 with lora.rank = 4"),
    ],
)
def test_errors_name_the_key(base: Path, tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(lora_recipe(tmp_path, base, more), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_peft_the_package_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    arguments = [str(tiny_file(tmp_path)), *overrides(model), "--out", str(tmp_path / "run")]
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert "'lora.rank' above 0" in error and "pip install 'logitless[peft]'" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()
