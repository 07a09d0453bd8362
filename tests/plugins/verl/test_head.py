"""The head in verl's FSDP2 engine against verl's own logits: log-probs, entropies, gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import logitless as ll
from tests.plugins.verl.cases import ENGINE_LOSSES, MODELS
from tests.plugins.verl.engines import (
    actor_config,
    data,
    distance,
    engine,
    off_policy,
    patches,
    save_model,
    scored,
    step,
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", MODELS)
def test_the_head_of_a_model_is_verls(name: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, **MODELS[name])
    theirs, mine = engine(folder, None), engine(folder, "logitless")
    td = data()
    expected, found = scored(theirs, td), scored(mine, td)
    mask = td["response_mask"].bool()
    assert expected["entropy"][mask].mean() > 0.3
    for key, x in expected.items():
        assert (x - found[key])[mask].abs().max() <= 1e-5, key
    td = off_policy(td, expected["log_probs"])
    config = actor_config("vanilla", entropy_coeff=0.01)
    for micro_batches in (1, 4):
        a, b = (step(x, td, config, micro_batches) for x in (theirs, mine))
        assert b.loss == pytest.approx(a.loss, abs=1e-6)
        assert distance(a, b) <= 1e-5
        assert a.metrics == pytest.approx(b.metrics, abs=1e-5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_model(tmp_path_factory.mktemp("model"))
    theirs, mine = engine(folder, None), engine(folder, "logitless")
    td = data()
    return theirs, mine, off_policy(td, scored(theirs, td)["log_probs"])


@pytest.mark.parametrize("name", ENGINE_LOSSES)
def test_losses_of_verl_on_this_head(name: str, pair: Any) -> None:
    theirs, mine, td = pair
    config = actor_config(ENGINE_LOSSES[name][0], **ENGINE_LOSSES[name][1])
    a, b = (step(x, td, config, 2) for x in (theirs, mine))
    assert b.loss == pytest.approx(a.loss, abs=2e-6)
    assert distance(a, b) <= 1e-5
    assert a.metrics == pytest.approx(b.metrics, abs=1e-5)


def test_a_temperature_per_sample(pair: Any) -> None:
    """verl's fused heads refuse it; its logits do not."""
    theirs, mine, _ = pair
    td = data(temperature=torch.linspace(0.5, 1.5, 8))
    expected, found = scored(theirs, td), scored(mine, td)
    mask = td["response_mask"].bool()
    for key, x in expected.items():
        assert (x - found[key])[mask].abs().max() <= 1e-5, key
    td = off_policy(td, expected["log_probs"])
    config = actor_config("vanilla", entropy_coeff=0.01)
    assert distance(step(theirs, td, config, 2), step(mine, td, config, 2)) <= 1e-5


def test_one_temperature_for_all(pair: Any) -> None:
    theirs, mine, _ = pair
    td = data(temperature=0.7)
    expected, found = scored(theirs, td), scored(mine, td)
    mask = td["response_mask"].bool()
    assert (expected["log_probs"] - found["log_probs"])[mask].abs().max() <= 1e-5


def test_prompts_enter_no_product(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, mine, td = pair
    counts = []

    def counted(hidden: Any, weight: Any, labels: Any, *, mask: Any, **options: Any) -> Any:
        counts.append((int(mask.sum()), labels.numel()))
        return own(hidden, weight, labels, mask=mask, **options)

    own = ll.linear_token_stats
    monkeypatch.setattr(ll, "linear_token_stats", counted)
    scored(mine, td)
    rows, tokens = (sum(x) for x in zip(*counts, strict=True))
    assert rows == 48 and tokens == int(td["attention_mask"].sum()) == 89


def test_other_backends_are_verls() -> None:
    model = torch.nn.Linear(1, 1)
    patches.patch_forward_with_backends(model, False, "logitless")
    patches.patch_forward_with_backends(model, True, "elsewhere")
    assert "forward" not in vars(model)


def test_an_adapter_of_the_body(tmp_path: Path) -> None:
    folder = save_model(tmp_path, tie_word_embeddings=False)

    def seeded(backend: str | None) -> Any:
        # both matrices of an adapter are random, or it would add nothing
        torch.manual_seed(3)
        made = engine(folder, backend, lora_rank=4, target_modules=["q_proj", "v_proj"])
        with torch.no_grad():
            for name, parameter in made.module.named_parameters():
                if "lora_B" in name:
                    parameter.to_local().normal_(std=0.3)
        return made

    theirs, mine = seeded(None), seeded("logitless")
    td = data()
    expected, found = scored(theirs, td), scored(mine, td)
    mask = td["response_mask"].bool()
    bare = scored(engine(folder, None), td)["log_probs"]
    assert (expected["log_probs"] - bare)[mask].abs().max() > 1e-2
    for key, x in expected.items():
        assert (x - found[key])[mask].abs().max() <= 1e-5, key
    td = off_policy(td, expected["log_probs"])
    config = actor_config("vanilla", entropy_coeff=0.01)
    a, b = (step(x, td, config, 2) for x in (theirs, mine))
    assert all("lora" in name for name in a.gradients)
    assert b.loss == pytest.approx(a.loss, abs=1e-6) and distance(a, b) <= 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_16_bits(tied: bool, tmp_path: Path) -> None:
    """Both are equally far from float32, by the rounding of the body.

    A loss without a clip: one that a rounded ratio crosses is another loss, for either.
    """
    folder = save_model(tmp_path, tie_word_embeddings=tied)
    exact = engine(folder, None)
    theirs, mine = (engine(folder, x, dtype="bf16") for x in (None, "logitless"))
    config = actor_config("gpg", entropy_coeff=0.01)
    off: dict[str, list[list[float]]] = {"log_probs": [], "entropy": [], "gradient": []}
    for seed in range(1, 5):
        td = data(seed)
        mask = td["response_mask"].bool()
        right, *both = (scored(x, td) for x in (exact, theirs, mine))
        for key, x in right.items():
            off[key].append([(x - one[key])[mask].pow(2).mean().sqrt().item() for one in both])
        td = off_policy(td, right["log_probs"])
        step_of, *steps = (step(x, td, config, 2) for x in (exact, theirs, mine))
        off["gradient"].append([distance(step_of, one) for one in steps])
    for key, rows in off.items():
        of_theirs, of_mine = (sum(x) / len(x) for x in zip(*rows, strict=True))
        assert 0 < of_mine <= 1.2 * of_theirs, (key, of_theirs, of_mine)


def test_an_adapter_on_the_head_is_refused_under_fsdp2(tmp_path: Path) -> None:
    folder = save_model(tmp_path, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="its head has an adapter"):
        scored(
            engine(folder, "logitless", lora_rank=4, target_modules=["q_proj", "lm_head"]), data()
        )


def test_an_adapter_on_the_head(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from logitless.integrations.verl.head import add_head, measure

    torch.manual_seed(5)
    body = AutoModelForCausalLM.from_pretrained(save_model(tmp_path, tie_word_embeddings=False))
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model = get_peft_model(body.float(), config)
    add_head(model.get_base_model())
    assert measure(model)
    ids = torch.arange(3, 9)[None]
    found = model(input_ids=ids, temperature=0.7)
    logp = (model(input_ids=ids).logits / 0.7).log_softmax(-1)
    right = logp.gather(-1, ids.roll(-1, -1)[..., None])[..., 0]
    torch.testing.assert_close(found.log_probs, right, rtol=0, atol=1e-5)
    trained = [x for x in model.parameters() if x.requires_grad]
    pairs = (torch.autograd.grad(x.sum(), trained) for x in (found.log_probs, right))
    for a, b in zip(*pairs, strict=True):
        assert float((a - b).abs().max()) <= 1e-4 * float(b.abs().max()) + 1e-7
