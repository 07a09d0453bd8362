"""ll.head_of: what it gives, leaves alone, looks through and refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import logitless as ll
from tests.integrations.tiny_models import VOCAB, tiny

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, 80, (2, 9), generator=torch.Generator().manual_seed(1))


def log_probs(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, IDS[..., None]).squeeze(-1)


def gradients(model: nn.Module, logp: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    logp.sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_trains_alike(model: Any, called: Any) -> None:
    """Through `called`, which may be a wrapper: every gradient is that of the model's logits."""
    expected = gradients(model, log_probs(model(input_ids=IDS).logits))
    head = ll.head_of(called)
    hidden = head.hidden(called, input_ids=IDS)
    stats = ll.linear_token_stats(hidden, head.weight, IDS, **head.options)
    found = gradients(model, stats.logp)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # The bias of an attention's keys has none, but for rounding.
        size = max(float(gradient.abs().max()), 1e-3)
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-11 * size)


def test_the_fields() -> None:
    model = tiny("phi")
    layer = model.get_output_embeddings()
    head = ll.head_of(model)
    assert head.weight is layer.weight
    assert tuple(head) == (layer.weight, layer.bias, None, 1.0, VOCAB, ())
    assert head.options == {"bias": layer.bias, "softcap": None, "logit_scale": 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("model_type", "option", "number", "softcap", "logit_scale"),
    [
        ("gemma2", "final_logit_softcapping", 30.0, 30.0, 1.0),
        ("xlstm", "output_logit_soft_cap", 17.3, 17.3, 1.0),
        ("cohere", "logit_scale", 0.0625, None, 0.0625),
        ("granite", "logits_scaling", 7.0, None, 1 / 7),
        ("hyperclovax", "logits_scaling", 1.3, None, 1.3),
    ],
)
def test_numbers_are_those_of_the_config(
    model_type: str,
    option: str,
    number: float,
    softcap: float | None,
    logit_scale: float,
    dtype: torch.dtype,
) -> None:
    head = ll.head_of(tiny(model_type, dtype, **{option: number}))
    assert (head.softcap, head.logit_scale) == (softcap, logit_scale)


def test_columns_that_make_no_logit_are_cut() -> None:
    model = tiny("inkling_text")
    head = ll.head_of(model)
    assert head.vocab == len(head.weight) == VOCAB - 6
    with torch.no_grad():
        model.get_output_embeddings().weight.add_(1)
    assert torch.equal(head.weight, model.get_output_embeddings().weight[: head.vocab])
    head.weight.sum().backward()
    assert float(model.get_output_embeddings().weight.grad.sum()) == head.weight.numel()


@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "phi", "bert"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_gradients(model_type: str, tied: bool) -> None:
    model = tiny(model_type, torch.float64, tie_word_embeddings=tied)
    assert_trains_alike(model, model)


class Wide(TorchDispatchMode):
    """How many ops make a tensor of a vocabulary's width for every token."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.shape[-1:] == (VOCAB,):
            self.count += result.numel() == IDS.numel() * VOCAB
        return result


# torch leaves the constructor untyped.
make_wide: Any = Wide


def test_no_logits_are_made() -> None:
    model = tiny("gemma2")
    head = ll.head_of(model)
    with make_wide() as plain:
        model(input_ids=IDS)
    with make_wide() as ours:
        head.hidden(model, input_ids=IDS)
    assert plain.count > 3
    assert ours.count == 0


def test_as_many_states_as_logits() -> None:
    model = tiny("qwen3")
    hidden = ll.head_of(model).hidden(model, input_ids=IDS, logits_to_keep=4)
    assert hidden.shape == (len(IDS), 4, 32)


def test_the_model_is_as_before() -> None:
    model = tiny("gpt2").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    model.lm_head.forward = own = model.lm_head.forward
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        ll.head_of(model)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert model.lm_head.forward is own
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    del model.lm_head.forward
    ll.head_of(model)
    assert "forward" not in vars(model.lm_head)
    logits = model(input_ids=IDS).logits
    assert logits.shape == (*IDS.shape, VOCAB)
    assert logits.requires_grad


def test_inside_torch_compile() -> None:
    model = tiny("gemma2", torch.float64)
    compiled: Any = torch.compile(model, backend="eager")
    # A graph with the product in it is there before.
    assert compiled(input_ids=IDS).logits.shape == (*IDS.shape, VOCAB)
    assert_trains_alike(model, compiled)
    assert compiled(input_ids=IDS).logits.shape == (*IDS.shape, VOCAB)


def test_inside_peft() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny("gemma2", torch.float64), config)
    assert_trains_alike(model, model)
    config.modules_to_save = ["lm_head"]
    model = peft.get_peft_model(tiny("gemma2", torch.float64), config)
    assert_trains_alike(model, model)


def test_lora_on_the_head() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(tiny("gemma2", torch.float64), config)
    model.add_adapter("other", config)
    for names in (["default"], ["default", "other"]):
        model.base_model.set_adapter(names)
        head = ll.head_of(model)
        assert len(head.options["adapter"]) == len(names)
        targets = IDS.roll(-1, -1)
        hidden = head.hidden(model, input_ids=IDS)
        stats = ll.linear_token_stats(hidden, head.weight, targets, **head.options)
        logits = model(input_ids=IDS).logits
        right = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        torch.testing.assert_close(stats.logp, right, rtol=0, atol=1e-10)
        trained = [x for x in model.parameters() if x.requires_grad]
        assert len(trained) == 2 * len(names)
        ours, theirs = (torch.autograd.grad(x.sum(), trained) for x in (stats.logp, right))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)
    with model.disable_adapter():
        assert "adapter" not in ll.head_of(model).options
    assert "adapter" not in ll.head_of(model.merge_and_unload()).options


@pytest.mark.parametrize(
    ("options", "message"),
    [({"use_dora": True}, "of which only plain LoRA is built"),
     ({"lora_bias": True}, "LoRA with lora_bias=True"),
     ({"lora_dropout": 0.1}, "lora_dropout=0.1")],
)  # fmt: skip
def test_what_is_no_plain_lora_is_refused(options: dict[str, Any], message: str) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False, **options)
    model = peft.get_peft_model(tiny("phi" if "lora_bias" in options else "llama"), config)
    with pytest.raises(ValueError, match=message):
        ll.head_of(model.train())


def test_several_modalities() -> None:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    from tests.integrations.tiny_models import small_config

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4, projection_dim=16,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=small_config("cohere"), image_token_index=5
    )
    model = LlavaForConditionalGeneration(config).double().eval()
    head = ll.head_of(model)
    # LLaVA's own head has no scale, whatever that of its text model has.
    assert (head.logit_scale, head.vocab) == (1.0, VOCAB)
    assert_trains_alike(model, model)


def test_encoder_and_decoder() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).double().eval()
    head = ll.head_of(model)
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS}
    logits = head.hidden(model, **inputs) @ head.weight.T
    torch.testing.assert_close(logits, model(**inputs).logits)


def changed(then: Callable[[Tensor], Tensor]) -> Any:
    """A Llama that does something with its logits."""
    model = tiny("llama")
    forward = model.forward

    def run(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.logits = then(output.logits)
        return output

    model.forward = run
    return model


def of_head(change: Callable[[nn.Linear], Any]) -> Any:
    """A Llama whose head was changed, or is another."""
    model = tiny("llama")
    other = change(model.lm_head)
    if isinstance(other, nn.Module):
        model.lm_head = other
    return model


class Twice(nn.Linear):
    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).tanh()


def with_forward(run: Callable[[Any, Tensor], Any]) -> Any:
    """A Llama with a forward of its own."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    model = tiny("llama")

    def forward(input_ids: Tensor) -> Any:
        states = model.model(input_ids=input_ids).last_hidden_state
        return CausalLMOutputWithPast(logits=run(model, states))

    model.forward = forward
    return model


def noisy() -> Any:
    model = tiny("llama")
    model.model.norm.register_forward_hook(lambda module, args, x: x + torch.randn_like(x))
    return model


def set_weight(weight: Tensor) -> Callable[[nn.Linear], None]:
    def change(layer: nn.Linear) -> None:
        layer.weight = nn.Parameter(weight, requires_grad=False)

    return change


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "scale of a column": (
        lambda: changed(lambda z: z * torch.arange(1, VOCAB + 1)),
        "each column has a scale of its own, 1 to 97",
    ),
    "scale of a row": (
        lambda: changed(lambda z: z * torch.arange(1, 9)[:, None]),
        "no scale and softcap, in 97 of 97 columns",
    ),
    "negative scale": (
        lambda: changed(lambda z: -2 * z), "multiplied by -2, which is not positive",
    ),
    "something added": (
        lambda: changed(lambda z: z + 0.25), "up to 0.25 is added to the logits after the head",
    ),
    "log_softmax": (
        lambda: changed(lambda z: z.log_softmax(-1)), "4.57 is added to the logits after the head",
    ),
    "masked columns": (
        lambda: changed(lambda z: z.index_fill(-1, torch.tensor([3, 8]), -torch.inf)),
        "2 of 97 columns are not finite after the head",
    ),
    "moved columns": (
        lambda: changed(lambda z: torch.cat((z[..., :90], z[..., 90:].flip(-1)), -1)),
        "scale of its own, 0.6245 to 1.601, or is another column",
    ),
    "the last columns": (lambda: changed(lambda z: z[..., 1:]), "or is another column"),
    "more columns": (
        lambda: changed(lambda z: torch.cat((z, z[..., :3]), -1)),
        "its logits have 100 columns, its head's weight 97 rows",
    ),
    "two rows a state": (
        lambda: changed(lambda z: z.repeat(2, 1, 1)), "reads 8 rows and its logits have 16",
    ),
    "clamped": (lambda: changed(lambda z: z.clamp(-50, 50)), "no scale and softcap"),
    "rounded": (
        lambda: changed(lambda z: (z * 1.2345).bfloat16()),
        "its scale of about 1.234 is only known to 0.008 in the dtype of its logits",
    ),
    "depends on the states": (
        lambda: with_forward(lambda m, x: m.lm_head(x) + x.norm()),
        "is added to the logits after the head",
    ),
    "a head of two steps": (
        lambda: of_head(lambda layer: Twice(32, VOCAB)),
        "its head, a Twice, gives other logits than its weight and bias",
    ),
    "called twice": (
        lambda: with_forward(lambda m, x: m.lm_head(x) + m.lm_head(x)),
        "its head is called 2 times in a forward, not once",
    ),
    "not called": (
        lambda: with_forward(lambda m, x: x @ m.lm_head.weight.T),
        "its head is called 0 times in a forward, not once",
    ),
    "no logits": (lambda: with_forward(lambda m, x: None), "its output has no logits"),
    "fails": (
        lambda: with_forward(lambda m, x: m.lm_head(x[..., :3])),
        "a forward of input_ids failed, RuntimeError: .*pass head_of(model, **inputs)",
    ),
    "fails without columns": (
        lambda: changed(lambda z: z + torch.zeros(VOCAB)), "failed, RuntimeError: .*size",
    ),
    "noise": (noisy, "its states differ by .* between two forwards of one input"),
    "quantised": (
        lambda: of_head(set_weight(torch.ones(VOCAB, 32, dtype=torch.int8))),
        "has a quantised weight: Parameter of torch.int8",
    ),
    "float8": (
        lambda: of_head(set_weight(torch.ones(VOCAB, 32).to(torch.float8_e4m3fn))),
        "has a quantised weight: Parameter of torch.float8_e4m3fn",
    ),
    "without data": (
        lambda: of_head(set_weight(torch.ones(VOCAB, 32, device="meta"))),
        "has a weight without data, on the meta device",
    ),
    "flat": (
        lambda: of_head(set_weight(torch.ones(VOCAB * 32))),
        "must hold a weight [V, H], got [3104]",
    ),
    "no weight": (lambda: of_head(lambda layer: nn.Identity()), "a Identity, has no weight"),
    "several heads": (
        lambda: of_head(lambda layer: nn.ModuleList([layer, layer])), "it has 2 heads, ModuleList",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_model_and_the_reason(case: str) -> None:
    make, reason = REFUSED[case]
    pattern = "head_of: LlamaForCausalLM: .*" + re.escape(reason).replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=pattern):
        ll.head_of(make())


def test_codebooks_are_several_heads() -> None:
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    config = MusicgenDecoderConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, ffn_dim=48
    )
    with pytest.raises(ValueError, match="MusicgenForCausalLM: it has 4 heads, ModuleList"):
        ll.head_of(MusicgenForCausalLM(config))


def test_a_body_has_no_head() -> None:
    body = tiny("llama").model
    with pytest.raises(ValueError, match="head_of: LlamaModel: it has no head"):
        ll.head_of(body)


@pytest.mark.parametrize("model", [nn.Linear(3, 5), "folder", None], ids=str)
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(TypeError, match="head_of: model must be a Hugging Face model with a head"):
        ll.head_of(model)


def test_other_inputs() -> None:
    model = with_forward(lambda m, x: m.lm_head(x))
    forward = model.forward
    model.forward = lambda ids, count: forward(ids[:, :count])
    with pytest.raises(ValueError, match="head_of: LlamaForCausalLM: a forward of input_ids"):
        ll.head_of(model)
    assert ll.head_of(model, ids=IDS, count=6).vocab == VOCAB


def test_a_float32_head_of_a_16_bit_model() -> None:
    """As trainers cast it: the body is bfloat16, the head casts what it reads."""
    model = tiny("qwen2", torch.bfloat16)
    layer = model.lm_head.float()
    layer.forward = lambda hidden: torch.nn.functional.linear(hidden.float(), layer.weight)
    head = ll.head_of(model)
    assert head.weight is layer.weight and head.weight.dtype == torch.float32
    assert head.logit_scale == 1.0 and head.softcap is None
