"""Adapters, 16 bits, torch.compile and rollouts of vLLM: TRL's trainer against ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins.trl.setting import (
    LENGTH,
    Run,
    differences,
    distance,
    generation,
    grpo,
    plain_model,
    run,
    save_model,
)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
WAYS = pytest.mark.parametrize("way", ["head", "loss"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def made_of(folder: Path, **options: Any) -> dict[str, Any]:
    return generation(plain_model(folder), **options)


def lora(*modules: str) -> dict[str, Any]:
    from peft import LoraConfig

    # Both matrices random: a new adapter adds nothing.
    config = LoraConfig(r=4, target_modules=list(modules), init_lora_weights=False)
    return {"trainer_options": {"peft_config": config}}


def seeded(way: str, folder: Path, made: dict[str, Any], **options: Any) -> Run:
    torch.manual_seed(3)
    return run(grpo(way, folder, **options), made)


@WAYS
def test_lora_of_the_body(way: str, folder: Path) -> None:
    made = made_of(folder)
    theirs, ours = (seeded(x, folder, made, **lora("q_proj", "v_proj")) for x in ("trl", way))
    assert all("lora" in name for name in ours.gradients)
    found = differences(theirs, ours)
    assert found["gradient"] <= 1e-5 and found["metrics"] <= 1e-5, found


@WAYS
def test_lora_of_the_head_is_refused_by_trl(way: str, folder: Path) -> None:
    """Its trainers look before they ask for a head."""
    with pytest.raises(ValueError, match="adapter"):
        grpo(way, folder, **lora("q_proj", "lm_head"))


def test_lora_of_the_head(folder: Path) -> None:
    """Against logits of the whole model."""
    from logitless.integrations.trl.head import add_head

    model = seeded_peft(folder, "q_proj", "lm_head")
    add_head(model.get_base_model(), outputs=("log_probs", "entropy", "mean_logits"))
    ids = torch.arange(3, 9)[None]
    found = model(input_ids=ids, labels=ids, fused_lm_head=True)
    logits = model(input_ids=ids).logits[:, :-1]
    right = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(found.log_probs, right, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.mean_logits, logits.mean(-1), rtol=0, atol=1e-5)
    trained = [x for x in model.parameters() if x.requires_grad]
    pairs = (torch.autograd.grad(x.sum(), trained) for x in (found.log_probs, right))
    for a, b in zip(*pairs, strict=True):
        assert float((a - b).abs().max()) <= 1e-4 * float(b.abs().max()) + 1e-7
    assert sum("lm_head" in k for k, x in model.named_parameters() if x.requires_grad) == 2


def seeded_peft(folder: Path, *modules: str) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=list(modules), init_lora_weights=False)
    return get_peft_model(plain_model(folder), config)


def test_an_adapter_of_another_kind_is_refused(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from logitless.integrations.trl.head import add_head

    model = plain_model(folder)
    add_head(model)
    get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], use_dora=True))
    ids = torch.arange(3, 9)[None]
    with pytest.raises(ValueError, match="its head has an adapter"):
        model(input_ids=ids, labels=ids, fused_lm_head=True)


@WAYS
@pytest.mark.parametrize(
    ("dtype", "args"),
    [
        (torch.bfloat16, {}),
        (torch.bfloat16, {"cast_lm_head_to_fp32": True}),
        (torch.float32, {"bf16": True}),
    ],
    ids=["bf16 weights", "float32 head", "autocast"],
)
def test_16_bits(dtype: torch.dtype, args: dict[str, Any], way: str, folder: Path) -> None:
    """Both are equally far from float32, by the rounding of the body."""
    made = made_of(folder)
    exact = seeded("trl", folder, made)
    theirs, ours = (seeded(x, folder, made, dtype=dtype, **args) for x in ("trl", way))
    assert {x.dtype for x in ours.gradients.values()} == {
        x.dtype for x in theirs.gradients.values()
    }
    assert distance(exact, ours) <= 1.2 * distance(exact, theirs) + 1e-3
    assert abs(theirs.loss - ours.loss) <= 1e-2


@WAYS
def test_torch_compile(way: str, folder: Path) -> None:
    """The body is compiled once; what is around the head's product stays Python."""
    from torch._dynamo.utils import counters

    made = made_of(folder)

    def compiled(which: str) -> Run:
        trainer = grpo(which, folder)
        trainer.model = torch.compile(trainer.model, backend="aot_eager")
        first, number = run(trainer, made), counters["stats"]["unique_graphs"]
        assert number > 0 and not counters["graph_break"]
        run(trainer, made)
        assert counters["stats"]["unique_graphs"] == number
        return first

    torch._dynamo.reset()
    counters.clear()
    assert distance(seeded("trl", folder, made), compiled(way)) <= 1e-5


@WAYS
@pytest.mark.parametrize(
    "mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
)
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "vespo"])
def test_rollouts_of_vllm(
    mode: str, loss_type: str, way: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loss_type == "vespo" and mode.startswith("sequence"):
        pytest.skip("TRL refuses it")
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", lambda **_: None)
    made = with_rollout(made_of(folder), mode)
    args = {
        "use_vllm": True, "vllm_mode": "colocate", "vllm_importance_sampling_mode": mode,
        "loss_type": loss_type, "off_policy_mask_threshold": 0.05,
    }  # fmt: skip
    theirs, ours = (seeded(x, folder, made, **args) for x in ("trl", way))
    assert all(x.isfinite().all() for x in ours.gradients.values())
    found = differences(theirs, ours)
    # vespo's weight is made of all log ratios of a sequence, and of what rounding left in them
    limit = 3e-5 if loss_type == "vespo" else 1e-5
    assert found["gradient"] <= limit and found["metrics"] <= 1e-5, found
    other = {**made, "importance_sampling_ratio": made["importance_sampling_ratio"] * 1.01 + 0.01}
    assert distance(theirs, seeded(way, folder, other, **args)) > 1e-4


def with_rollout(made: dict[str, Any], mode: str) -> dict[str, Any]:
    """As TRL scores what vLLM generated: ratios to its log-probs, cut or dropped at 0.6 and 1.8.

    Two of the log-probs are NaN: vLLM scored these tokens not, and TRL counts them as the policy's.
    """
    g = torch.Generator().manual_seed(5)
    old, mask = made["old_per_token_logps"], made["completion_mask"]
    sampled = old + 0.3 * torch.randn(4, LENGTH, generator=g)
    sampled[0, 1] = sampled[2, 0] = float("nan")
    apart = ((old - sampled) * mask).nan_to_num(nan=0.0)
    if mode.startswith("sequence"):
        apart = apart.sum(dim=1, keepdim=True)
    ratio = apart.exp()
    if mode.endswith("truncate"):
        ratio = ratio.clamp(0.6, 1.8)
    else:
        ratio = ratio.masked_fill((ratio < 0.6) | (ratio > 1.8), 0)
    return {**made, "sampling_per_token_logps": sampled, "importance_sampling_ratio": ratio}
