"""Losses that look at all of an optimizer batch, in TRL's micro-batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import logitless as ll
from logitless.integrations.trl.optimizer_batch import optimizer_batch
from tests.plugins.trl.setting import (
    LENGTH,
    PROMPT,
    Run,
    generation,
    grpo,
    plain_model,
    quiet,
    run,
    save_model,
)

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = 16
LOOSE = ll.ClipCov(fraction=0.1, low=0.05, high=50.0)
CLIP_COV = replace(ll.presets["clip_cov"], control=LOOSE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def step(folder: Path, spec: Any, made: dict[str, Any], micro_batches: int, **more: Any) -> Run:
    """Gradients of one optimizer step, by the trainer's own loop but for the optimizer."""
    args = {
        "per_device_train_batch_size": ROWS // micro_batches,
        "gradient_accumulation_steps": micro_batches,
        "num_iterations": 2,
        **more,
    }
    trainer = grpo("loss", folder, **args, trainer_options={"loss": spec})
    trainer._generate_and_score_completions = lambda _: made
    trainer.model.train()
    torch.manual_seed(0)
    total = 0.0
    for i in range(micro_batches):
        trainer.accelerator.gradient_state._set_sync_gradients(i == micro_batches - 1)
        with quiet():
            total += float(trainer.training_step(trainer.model, [], None))
    gradients = {k: p.grad for k, p in trainer.model.named_parameters()}
    return Run(total, gradients, dict(trainer._metrics["train"]))


def plain(folder: Path, made: dict[str, Any], keep: Tensor, high: float = 1.0) -> Run:
    """Token mean of PPO's loss over full logits of the whole batch, of the tokens in `keep`."""
    model = plain_model(folder)
    ids, attention = (
        torch.cat((made[f"prompt_{x}"], made[f"completion_{x}"]), dim=1) for x in ("ids", "mask")
    )
    logits = model(input_ids=ids, attention_mask=attention).logits[:, PROMPT - 1 : -1]
    logp = logits.log_softmax(-1).gather(-1, made["completion_ids"][..., None])[..., 0]
    mask = made["completion_mask"].bool()
    r = (logp - made.get("old_per_token_logps", logp.detach())).exp()
    a = made["advantages"][:, None]
    each = -torch.minimum(r * a, r.clamp(1 - high, 1 + high) * a)
    loss = torch.where(mask & keep, each, 0).sum() / mask.sum()
    loss.backward()
    gradients = {k: p.grad for k, p in model.named_parameters()}
    return Run(loss.item(), gradients, {"logp": [logp.detach()]})  # type: ignore[list-item]


def apart(a: Run, b: Run) -> float:
    return max(
        ((x - b.gradients[k]).abs().max() / x.abs().max()).item() for k, x in a.gradients.items()
    )


@pytest.mark.parametrize("old", [0.3, None], ids=["off policy", "on policy"])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_clip_cov_is_that_of_the_whole_batch(
    micro_batches: int, old: float | None, folder: Path
) -> None:
    """Tokens are selected once for the batch, whatever micro-batches it is cut into."""
    made = generation(plain_model(folder), ROWS, old=old)
    found = step(folder, CLIP_COV, made, micro_batches)
    mask = made["completion_mask"].bool()
    everything = torch.ones_like(mask)
    start = plain(folder, made, everything)
    # The rows as TRL shuffled them carry the ids, so the plain selection is of those rows.
    torch.manual_seed(0)
    order = torch.randperm(ROWS)
    logp = made.get("old_per_token_logps", start.metrics["logp"][0])[order]  # type: ignore[index]
    batch = ll.batch_stats(
        logp,
        made["advantages"][order][:, None].expand_as(logp).contiguous(),
        mask[order],
        CLIP_COV,
        old_logp=logp if old is not None else None,
        token_ids=ll.token_ids(torch.arange(ROWS), torch.arange(LENGTH), 1 << 32),
        seed=42,
        step=0,
    )
    assert len(batch.selected) == max(int(0.1 * mask.sum()), 1)
    keep = everything.clone()
    for one in batch.selected.tolist():
        keep[order[one >> 32], one & (1 << 32) - 1] = False
    expected = plain(folder, made, keep)
    assert found.loss == pytest.approx(expected.loss, abs=2e-6)
    assert apart(expected, found) <= 1e-5
    # and the tokens matter
    assert apart(start, found) > 1e-2
    share = sum(found.metrics["actor/cov_selected"]) / micro_batches
    assert share == pytest.approx(len(batch.selected) / int(mask.sum()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        "ppo", "grpo", "gspo", "dr_grpo", "cispo", "clip_cov", "kl_cov", "top_entropy", "tea",
        "clip_b", "clip_v", "reinforce",
    ],
)  # fmt: skip
@pytest.mark.parametrize("old", [0.3, None], ids=["off policy", "on policy"])
def test_micro_batches_change_no_preset(loss: str, old: float | None, folder: Path) -> None:
    made = generation(plain_model(folder), ROWS, old=old, cut=(9, 6, 0, 4, 8))
    one, four = (step(folder, loss, made, n) for n in (1, 4))
    assert one.loss == pytest.approx(four.loss, abs=2e-6)
    assert apart(one, four) <= 1e-5
    for name, values in one.metrics.items():
        if name.startswith("actor/"):
            assert sum(four.metrics[name]) / 4 == pytest.approx(values[0], abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["prime_rl", "ipo", "ppo", "clip_cov"])
def test_micro_batches_change_no_rollout_of_vllm(
    loss: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses that look at the rollout's log-probs, and importance weights of those that do not."""
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", lambda **_: None)
    made = generation(plain_model(folder), ROWS, cut=(9, 6, 0, 4, 8))
    noise = 0.3 * torch.randn(ROWS, LENGTH, generator=torch.Generator().manual_seed(5))
    sampled = made["old_per_token_logps"] + noise
    # a token that vLLM did not score
    sampled[0, 1] = float("nan")
    ratio = (-noise).exp().clamp(max=1.8)
    ratio[0, 1] = 1
    made |= {"sampling_per_token_logps": sampled, "importance_sampling_ratio": ratio}
    args = {
        "use_vllm": True, "vllm_mode": "colocate",
        "vllm_importance_sampling_mode": "token_truncate",
    }  # fmt: skip
    one, four = (step(folder, loss, made, n, **args) for n in (1, 4))
    assert one.loss == pytest.approx(four.loss, abs=2e-6)
    assert all(x.isfinite().all() for x in one.gradients.values())
    assert apart(one, four) <= 1e-5
    # and the rollout matters
    other = made | {
        "sampling_per_token_logps": sampled + 0.2,
        "importance_sampling_ratio": ratio / 2,
    }
    assert apart(one, step(folder, loss, other, 1, **args)) > 1e-3


@pytest.mark.parametrize("loss", ["ppo", "grpo", "clip_cov"])
def test_a_batch_without_a_valid_token(loss: str, folder: Path) -> None:
    made = generation(plain_model(folder), ROWS, cut=(0,))
    found = step(folder, loss, made, 2)
    assert found.loss == 0.0
    assert not any(x.any() for x in found.gradients.values() if x is not None)


def test_another_loss_between_steps(folder: Path) -> None:
    made = generation(plain_model(folder))
    trainer, other = (
        grpo("loss", folder, trainer_options={"loss": loss}) for loss in ("ppo", "cispo")
    )
    trainer.policy_loss = ll.presets["cispo"]
    assert run(trainer, made).loss == run(other, made).loss


def test_what_needs_more_than_is_generated_is_refused(folder: Path) -> None:
    made = generation(plain_model(folder), ROWS)
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        step(folder, "clip_cov", made, 4, steps_per_generation=1, num_iterations=1)


@pytest.mark.parametrize(
    ("loss", "args", "word"),
    [
        ("clip_cov", {"epsilon": 0.3}, "epsilon=0.3"),
        ("clip_cov", {"loss_type": "grpo"}, "loss_type='grpo'"),
        (replace(ll.presets["ppo"], kl=ll.KL("k2")), {}, "beta"),
        ("prime_rl", {}, "use_vllm"),
    ],
)
def test_a_loss_that_contradicts_its_arguments(
    loss: Any, args: dict[str, Any], word: str, folder: Path
) -> None:
    with pytest.raises(ValueError, match=word):
        grpo("loss", folder, **args, trainer_options={"loss": loss})


def test_a_loss_of_another_kind(folder: Path) -> None:
    with pytest.raises(TypeError, match="got int"):
        grpo("loss", folder, trainer_options={"loss": 3})
    with pytest.raises(KeyError, match="clip_cov"):
        grpo("loss", folder, trainer_options={"loss": "clip_cof"})


def test_as_many_completions_as_each_has_tokens() -> None:
    """Nothing takes one for the other: one micro-batch numbers its tokens as three do."""
    g = torch.Generator().manual_seed(0)
    made = [
        {"completion_mask": torch.ones(rows, 6), "advantages": torch.randn(rows, generator=g)}
        for rows in (6, 2, 2, 2)
    ]
    fixed: dict[str, Any] = {
        "old_is_current": True, "rank": 0, "data_group": None, "seed": 0, "step": 0
    }  # fmt: skip
    whole, parts = (
        optimizer_batch(batches, ll.presets["ppo"], lambda _: pytest.fail("scored"), **fixed)
        for batches in (made[:1], made[1:])
    )
    assert torch.equal(whole.token_ids[0], torch.cat(parts.token_ids))
    assert whole.token_ids[0].unique().numel() == 36
