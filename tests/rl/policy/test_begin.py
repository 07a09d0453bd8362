"""How prompts begin: with the BOS that the tokenizer itself adds, once; answers never."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tokenizers import processors  # noqa: E402

from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.policy import Policy, make_policy  # noqa: E402
from logitless.rl.rollout import sample  # noqa: E402
from logitless.rl.tracking import metrics  # noqa: E402
from logitless.rl.tracking.stopwatch import Stopwatch  # noqa: E402
from logitless.rl.update.warmup import make_pool  # noqa: E402
from tests.support.recipes import tiny_recipe  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return make_policy(tiny_recipe(tmp_path).model, 0)


def with_bos(policy: Policy, *, eos: bool = False) -> Policy:
    """As Llama's tokenizers have it; eos: an end behind the text, too, as some have it."""
    tokenizer = policy.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<begin>", "<end>")]
    single = "<begin> $A <end>" if eos else "<begin> $A"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=ids
    )
    return policy


def bare(policy: Policy, text: str) -> list[int]:
    ids: list[int] = policy.tokenizer(text, add_special_tokens=False).input_ids
    return ids


def test_a_tokenizer_without_bos_adds_nothing(policy: Policy) -> None:
    assert policy.encode(["sum 8:", "x"]) == [bare(policy, "sum 8:"), bare(policy, "x")]


def test_a_prompt_without_tokens_is_refused(policy: Policy) -> None:
    """Beside others it would be padding alone, and its answer that of no prompt."""
    with pytest.raises(ValueError, match="at least one token, got '', of which"):
        policy.encode(["sum 8:", ""])
    # but BOS is one
    assert with_bos(policy).encode(["sum 8:", ""])[1] == [policy.tokenizer.bos_token_id]


@pytest.mark.parametrize("eos", [False, True])
def test_texts_begin_with_bos_and_answers_do_not(policy: Policy, eos: bool) -> None:
    policy = with_bos(policy, eos=eos)
    bos = policy.tokenizer.bos_token_id
    assert policy.encode(["sum 8:", "x"]) == [
        [bos, *bare(policy, "sum 8:")], [bos, *bare(policy, "x")]
    ]  # fmt: skip
    # a text that a template has made has it
    assert policy.encode(["<begin>sum 8:"]) == policy.encode(["sum 8:"])
    assert policy.encode_answers(["35"]) == [bare(policy, "35")]
    pool = make_pool(policy, ["sum 8:", "x"], ["35", "3"], {})
    assert (pool.rollout.ids == bos).sum(dim=1).tolist() == [1, 1]
    assert pool.rollout.targets.tolist() == [
        *bare(policy, "35"), policy.eos, *bare(policy, "3"), policy.eos
    ]  # fmt: skip


def test_a_chat_template_says_itself_how_it_begins(policy: Policy) -> None:
    policy = with_bos(policy)
    bos = policy.tokenizer.bos_token_id
    policy.tokenizer.chat_template = TEMPLATE
    assert bos not in policy.encode(["sum 8:"], chat_template=True)[0]
    policy.tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    (ids,) = policy.encode(["sum 8:"], chat_template=True)
    assert ids == [bos, *bare(policy, "<user>sum 8:<answer>")]
    messages = [{"role": "user", "content": "sum 8:"}]
    # messages are in the template in every case, a text beside them is not
    assert policy.encode([messages, "x"]) == [ids, [bos, *bare(policy, "x")]]


def test_a_system_prompt_stands_before_texts_alone(policy: Policy) -> None:
    policy.tokenizer.chat_template = TEMPLATE
    messages = [{"role": "user", "content": "hi"}]
    found = policy.encode(["sum 8:", messages], chat_template=True, system="Be short.")
    assert found == [
        bare(policy, "<system>Be short.<user>sum 8:<answer>"), bare(policy, "<user>hi<answer>")
    ]  # fmt: skip
    policy.tokenizer.chat_template = TEMPLATE.replace("'tool'", "'system'")
    with pytest.raises(ValueError, match="template refuses messages of system, user: no tools"):
        policy.encode(["sum 8:"], chat_template=True, system="Be short.")


def test_a_system_prompt_needs_a_template(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'rollout\.system_prompt' needs rollout\.chat_template"):
        tiny_recipe(tmp_path, "rollout.system_prompt=Be short.")
    recipe = tiny_recipe(tmp_path, "rollout.system_prompt=Be short.", "rollout.chat_template=true")
    with pytest.raises(ValueError, match="a tokenizer that has no chat template"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def without_pad(policy: Policy) -> Policy:
    tokenizer = policy.tokenizer
    plain = tokenizer.__class__(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<end>", padding_side="left"
    )
    assert plain.pad_token_id is None
    return replace(policy, tokenizer=plain)


def test_a_tokenizer_without_pad_samples_the_same(policy: Policy) -> None:
    found: list[Any] = []
    with torch.no_grad():
        ids = torch.tensor(policy.encode(["sum 8:"]))
        state = policy.states(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]
        policy.weight.mul_(8.0)
        # the end token has this logit behind the prompt
        policy.weight[policy.eos] = 4.5 * state / (state @ state)
    for one in (policy, without_pad(policy)):
        rollout = sample(
            one, one.encode(["sum 8:", "a longer prompt:"]), group=8, max_new_tokens=6,
            temperature=1.0, seed=0, step=0, clock=Stopwatch(),
        )  # fmt: skip
        found.append(rollout)
    with_pad, without = found
    assert torch.equal(with_pad.mask, without.mask)
    assert torch.equal(with_pad.targets, without.targets)
    assert torch.equal(with_pad.logp, without.logp)
    # where nothing was sampled the one has its pad token, the other the end token
    assert not torch.equal(with_pad.ids, without.ids)
    assert len(with_pad.lengths.unique()) > 1


@pytest.mark.parametrize("kind", ["bos", "no pad"])
def test_such_tokenizers_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Without a pad token the metrics are those with one; with BOS they are others."""
    recipe = tiny_recipe(
        tmp_path, "steps=2", "compare_repeats=0", "warmup.steps=0", "warmup.full_steps=0",
        "entropy_change_every=1", "methods={grpo: {preset: grpo}}",
    )  # fmt: skip
    made = make_policy

    def changed(*given: Any) -> Policy:
        return (with_bos if kind == "bos" else without_pad)(made(*given))

    assert run(recipe, tmp_path / "plain") == 0
    monkeypatch.setattr("logitless.rl.demo.prepare.make_policy", changed)
    assert run(recipe, tmp_path / "changed") == 0
    plain, other = (
        metrics.read(tmp_path / name / "grpo" / metrics.FILE) for name in ("plain", "changed")
    )
    assert len(plain) == len(other) == 2
    keys = ("reward", "entropy", "logp_gap", "grad_norm", "entropy_change", "tokens")
    same = [one[key] == two[key] for one, two in zip(plain, other, strict=True) for key in keys]
    assert all(same) if kind == "no pad" else not all(same)
    longer = 1 if kind == "bos" else 0
    for one, two in zip(plain, other, strict=True):
        assert two["prompt_length/max"] == one["prompt_length/max"] + longer
