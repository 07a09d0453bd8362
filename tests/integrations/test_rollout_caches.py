"""Rollouts of models whose cache has recurrent states, keys and values, or both: the log-probs that
training will have, or refused before it."""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from tokenizers import Tokenizer, models

from logitless.rl.policy import Policy, as_policy, keep_rows
from logitless.rl.rollout import Rollout, check_cache, sample
from logitless.rl.tracking.stopwatch import Stopwatch
from tests.integrations.tiny_models import VOCAB, model_types, tiny

pytestmark = pytest.mark.filterwarnings("ignore")

# Of the model's head, not of padding; a third of them ends an answer.
TOKENS = VOCAB - 6
ENDS = list(range(1, TOKENS, 3))
BOTH = ["linear_attention", "full_attention"]
# Where the small config has a kind of layers alone that the model has beside another.
HYBRID: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": BOTH},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": BOTH},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "zamba": {"layer_types": ["linear_attention", "hybrid"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
}
WORKS = [
    "bamba", "falcon_h1", "falcon_mamba", "gemma2", "gpt2", "granitemoehybrid", "jamba",
    "kimi_linear", "lfm2", "lfm2_moe", "llama", "mamba", "mamba2", "minimax", "nemotron_h",
    "olmo_hybrid", "qwen3_5_text", "qwen3_next", "zamba", "zamba2",
]  # fmt: skip
# A state in the modules, or of a class of its own; the last counts positions from its pad on.
REFUSED = ["recurrent_gemma", "rwkv", "xlstm", "roberta"]


def policy_of(model_type: str) -> Policy:
    """A tiny model with random weights, and a tokenizer of as many words as it has tokens."""
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(TOKENS)}, unk_token="w2"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="w1", pad_token="w0", padding_side="left"
    )
    model = tiny(model_type, **HYBRID.get(model_type, {}))
    with torch.no_grad():
        # log-probs of order 5: fp32 has 5e-7 of them
        model.get_output_embeddings().weight.mul_(0.2)
    model.generation_config = transformers.GenerationConfig(eos_token_id=ENDS)
    return as_policy(model, tokenizer)


def draw(policy: Policy) -> Rollout:
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randint(3, TOKENS, (n,), generator=generator).tolist() for n in (3, 9, 6)]
    return sample(
        policy, prompts, group=4, max_new_tokens=9, temperature=1.0, seed=0, step=0,
        clock=Stopwatch(),
    )  # fmt: skip


def largest_difference(policy: Policy, rollout: Rollout) -> float:
    """Of a log-prob, from that of the model on the whole sequence without padding."""
    off = 0.0
    for row, length in enumerate(rollout.lengths.tolist()):
        ids = rollout.ids[row][rollout.attention[row]]
        with torch.no_grad():
            logits = policy.model(input_ids=ids[None]).logits[0, :-1, :TOKENS]
        logp = logits.double().log_softmax(-1).gather(1, ids[1:, None])[-length:, 0]
        off = max(off, float((rollout.logp[row, :length] - logp).abs().max()))
    return off


@pytest.mark.parametrize("model_type", WORKS)
def test_log_probs_are_those_of_the_whole_sequence(model_type: str) -> None:
    policy = policy_of(model_type)
    check_cache(policy)
    sizes: list[int] = []
    policy.model.register_forward_pre_hook(
        lambda module, args, inputs: sizes.append(len(inputs["input_ids"])), with_kwargs=True
    )
    rollout = draw(policy)
    # each prompt is read once, and sequences leave
    assert sizes[0] == 3 and sizes[-1] < sizes[1] <= 12, sizes
    assert len(set(rollout.lengths.tolist())) > 2
    assert largest_difference(policy, rollout) <= 2e-6


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_is_not_the_same_is_refused(model_type: str) -> None:
    policy = policy_of(model_type)
    name = re.escape(type(policy.model).__name__)
    with pytest.raises(ValueError, match=f"^a model of class {name} cannot [^\n]*$"):
        check_cache(policy)


def test_a_cache_that_selects_wrong_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check sees what it is for: of a recurrent state the rows of others."""
    from transformers import cache_utils

    policy = policy_of("qwen3_next")
    check_cache(policy)
    original = cache_utils.LinearAttentionLayer.reorder_cache
    monkeypatch.setattr(
        cache_utils.LinearAttentionLayer,
        "reorder_cache",
        lambda self, index: original(self, index.flip(0)),
    )
    with pytest.raises(ValueError, match="with a cache its states are off by"):
        check_cache(policy)


def test_rows_of_a_cache() -> None:
    """Any order, any number of times, of both kinds of layers."""
    policy = policy_of("qwen3_next")
    ids = torch.arange(3, 15).view(3, 4)
    cache = policy.new_cache()
    policy.states(ids, torch.ones_like(ids, dtype=torch.bool), cache)
    before = tensors(cache)
    index = torch.tensor([2, 2, 0, 1])
    keep_rows(cache, index)
    after = tensors(cache)
    assert len(before) == len(after) == 4
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new, old[index])


def tensors(cache: Any) -> list[torch.Tensor]:
    found = []
    for layer in cache.layers:
        for part in vars(layer).values():
            parts = part.values() if isinstance(part, dict) else [part]
            found += [x for x in parts if isinstance(x, torch.Tensor) and x.ndim > 1]
    return found


@cache
def outcome(model_type: str) -> str:
    try:
        policy = policy_of(model_type)
    except Exception as error:
        return f"not buildable: {type(error).__name__}: {error}"
    try:
        check_cache(policy)
    except ValueError as error:
        return f"refused: {error}"
    off = largest_difference(policy, draw(policy))
    if not off <= 1e-4:
        return f"wrong: off by {off}"
    return "right"


@pytest.mark.slow
def test_every_class_is_right_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    found = {model_type: outcome(model_type) for model_type in model_types()}
    with capsys.disabled():
        for model_type, what in found.items():
            if what != "right":
                sys.stdout.write(f"{model_type}: {what}"[:200] + "\n")
    assert not [what for what in found.values() if what.startswith("wrong")]
    assert sum(what == "right" for what in found.values()) > 0.5 * len(found)
