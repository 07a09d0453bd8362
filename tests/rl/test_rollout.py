from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import logitless as ll
from logitless.rl.policy import Policy, as_policy, make_policy, text_of
from logitless.rl.rollout import Rollout, hidden_states, sample
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import pack
from tests.support.recipes import tiny_recipe

PROMPTS = ["sum 8:", "sum 10:", "a much longer prompt"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    policy = make_policy(tiny_recipe(tmp_path_factory.mktemp("recipe")).model, seed=0)
    with torch.no_grad():
        # From scratch the head is nearly uniform: sharpen it, and make the end token likely.
        policy.weight.mul_(30)
    return policy


def draw(
    policy: Policy,
    *,
    group: int = 16,
    seed: int = 0,
    temperature: float = 0.7,
    max_new_tokens: int = 6,
    **truncation: Any,
) -> Rollout:
    return sample(
        policy,
        policy.encode(PROMPTS),
        group=group,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        step=3,
        clock=Stopwatch(),
        **truncation,
    )


def with_likely_end(policy: Policy, ids: list[int]) -> Policy:
    """The same policy whose end token is the one it draws most: answers end at many lengths."""
    # Entries from 256 on are specials and padding.
    likely = max((i for i in set(ids) if i < 256), key=ids.count)
    tokenizer = policy.tokenizer.__class__(
        tokenizer_object=policy.tokenizer.backend_tokenizer,
        eos_token=policy.tokenizer.convert_ids_to_tokens(likely),
        pad_token="<pad>",
    )
    return Policy(policy.model, tokenizer, policy.head)


def test_sampled_logp_and_entropy_are_those_of_training(policy: Policy) -> None:
    rollout = draw(policy)
    stats = ll.linear_token_stats(
        hidden_states(policy, rollout), policy.weight, rollout.targets, temperature=0.7,
        **policy.head_options,
    )  # fmt: skip
    torch.testing.assert_close(stats.logp, rollout.logp[rollout.mask], atol=2e-5, rtol=0)
    torch.testing.assert_close(stats.entropy, rollout.entropy[rollout.mask], atol=2e-5, rtol=0)
    # And both are those of the model itself, run on one unpadded sequence.
    row = 2 * 16 + 5
    ids = rollout.ids[row][rollout.attention[row]]
    logits = policy.model(ids[None]).logits[0, :-1, :258] / 0.7
    logp = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0]
    lengths = int(rollout.lengths[row])
    torch.testing.assert_close(
        logp[-lengths:], rollout.logp[row][rollout.mask[row]], atol=2e-5, rtol=0
    )


def test_an_answer_stops_at_the_end_token_and_keeps_it(policy: Policy) -> None:
    policy = with_likely_end(policy, draw(policy).targets.tolist())
    rollout = draw(policy)
    completions = rollout.ids[:, rollout.prompt_length :]
    assert len(set(rollout.lengths.tolist())) > 1
    for ids, mask, length in zip(completions, rollout.mask, rollout.lengths.tolist(), strict=True):
        assert mask[:length].all()
        assert not mask[length:].any()
        assert (ids[: length - 1] != policy.eos).all()
        assert length == len(mask) or ids[length - 1] == policy.eos
        assert (ids[length:] == policy.pad).all()
    assert not rollout.logp[~rollout.mask].any()
    assert torch.equal(rollout.attention[:, rollout.prompt_length :], rollout.mask)


def test_answers_that_have_ended_leave_the_body(policy: Policy) -> None:
    policy = with_likely_end(policy, draw(policy).targets.tolist())
    sizes: list[int] = []
    hook = policy.model.register_forward_pre_hook(
        lambda module, args, inputs: sizes.append(len(inputs["input_ids"])), with_kwargs=True
    )
    rollout = draw(policy, max_new_tokens=60)
    hook.remove()
    going_on = rollout.mask.sum(dim=0).tolist()
    assert sizes[0] == len(PROMPTS) and min(sizes[1:]) < sizes[1] <= 3 * 16
    for size, live in zip(sizes[1:], going_on[1:], strict=True):
        assert live == size or live < size < 2 * live
    stats = ll.linear_token_stats(
        hidden_states(policy, rollout), policy.weight, rollout.targets, temperature=0.7,
        **policy.head_options,
    )  # fmt: skip
    torch.testing.assert_close(stats.logp, rollout.logp[rollout.mask], atol=2e-5, rtol=0)
    torch.testing.assert_close(stats.entropy, rollout.entropy[rollout.mask], atol=2e-5, rtol=0)


def test_a_draw_depends_on_seed_and_place_alone(policy: Policy) -> None:
    first, again, other = draw(policy), draw(policy), draw(policy, seed=1)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.ids, other.ids)
    # The answers of one prompt differ.
    assert len({tuple(row) for row in first.ids[:16].tolist()}) > 1


def test_packing_keeps_sequences_whole(policy: Policy) -> None:
    rollout = draw(with_likely_end(policy, draw(policy).targets.tolist()))
    index = torch.tensor([7, 0, 40])
    advantages = torch.arange(float(len(rollout.mask)))
    packed = pack(rollout, advantages, index)
    lengths = rollout.lengths[index]
    assert packed.cu_seqlens.tolist() == [0, *lengths.cumsum(0).tolist()]
    assert packed.advantages.tolist() == advantages[index].repeat_interleave(lengths).tolist()
    for place, sequence in enumerate(index.tolist()):
        rows = slice(*packed.cu_seqlens[place : place + 2].tolist())
        ids = rollout.ids[sequence, rollout.prompt_length :][: int(lengths[place])]
        assert torch.equal(packed.targets[rows], ids)
        assert torch.equal(packed.old_logp[rows], rollout.logp[sequence][rollout.mask[sequence]])
    # A token's id is its own wherever its sequence is packed.
    whole = pack(rollout, advantages, torch.arange(len(rollout.mask)))
    assert len(whole.token_ids.unique()) == len(whole.token_ids)
    assert set(packed.token_ids.tolist()) < set(whole.token_ids.tolist())


def test_texts_drop_the_end_token(policy: Policy) -> None:
    end = policy.eos
    ids = torch.tensor([[65, 66, end], [65, 66, 67]])
    ids[:, :2] = torch.tensor(policy.encode(["hi"])[0])
    nothing = torch.zeros(2, 3)
    mask = torch.tensor([[True, True, True]] * 2)
    rollout = Rollout(ids, mask, mask, nothing, nothing)
    assert rollout.texts(policy.tokenizer)[0] == "hi"


def test_log_probs_of_a_truncated_rollout_are_those_of_training(policy: Policy) -> None:
    rollout = draw(policy, top_p=0.6, top_k=40)
    kept = rollout.kept
    assert kept is not None and len(kept) == len(rollout.targets)
    sizes = [len(ids) for ids in kept.lists()]
    assert 1 <= min(sizes) < max(sizes) <= 40
    for target, ids in zip(rollout.targets.tolist(), kept.lists(), strict=True):
        assert target in ids
    stats = ll.linear_token_stats(
        hidden_states(policy, rollout), policy.weight, rollout.targets, temperature=0.7,
        sampling_mask=kept, **policy.head_options,
    )  # fmt: skip
    torch.testing.assert_close(stats.logp, rollout.logp[rollout.mask], atol=2e-5, rtol=0)
    torch.testing.assert_close(stats.entropy, rollout.entropy[rollout.mask], atol=2e-5, rtol=0)
    # and some sequences of it, in any order, have the sets of their own tokens
    index = torch.tensor([7, 0, 40])
    some = rollout.sequences(index)
    assert some.kept is not None
    places = torch.arange(len(rollout.targets)).split(rollout.lengths.tolist())
    rows = torch.cat([places[i] for i in index.tolist()])
    assert some.kept.lists() == kept.rows(rows).lists()
    assert torch.equal(some.targets, rollout.targets[rows])
    assert draw(policy).kept is None


def test_tokens_without_text_are_no_text_that_is_right(policy: Policy) -> None:
    """The head has 384 rows, the tokenizer 258 tokens."""
    hi, tokenizer = policy.encode(["hi"])[0], policy.tokenizer
    assert text_of([hi[0], 300, hi[1]], tokenizer, special_tokens=False) == "h\ufffdi"
    assert text_of([300, *hi, 383], tokenizer, special_tokens=False) == "\ufffdhi\ufffd"
    assert text_of([*hi, policy.eos], tokenizer, special_tokens=True) == "hi<end>"
    assert text_of([*hi, policy.eos], tokenizer, special_tokens=False) == "hi"


@pytest.fixture(params=["plain", "softcap"])
def untrained(request: pytest.FixtureRequest, tmp_path: Path) -> Policy:
    """A third of its head's rows have no token."""
    recipe = tiny_recipe(tmp_path).model
    if request.param == "plain":
        return make_policy(recipe, seed=0)
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=384, hidden_size=16, intermediate_size=32, num_hidden_layers=1, head_dim=8,
        num_attention_heads=2, num_key_value_heads=2, final_logit_softcapping=5.0,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = make_policy(recipe, seed=0).tokenizer
    return as_policy(Gemma2ForCausalLM(config), tokenizer)


def test_padding_of_a_head_is_never_drawn(untrained: Policy) -> None:
    rollout = draw(untrained, temperature=1.0)
    assert rollout.targets.max() < len(untrained.tokenizer) == 258
    drawn = draw(as_policy(untrained.model, untrained.tokenizer, True), temperature=1.0)
    assert (drawn.targets >= 258).float().mean() > 0.2
    # training has the same probabilities, and they are those of the model without the padding
    stats = ll.linear_token_stats(
        hidden_states(untrained, rollout), untrained.weight, rollout.targets,
        **untrained.head_options,
    )  # fmt: skip
    torch.testing.assert_close(stats.logp, rollout.logp[rollout.mask], atol=2e-5, rtol=0)
    row = 2 * 16 + 5
    ids = rollout.ids[row][rollout.attention[row]]
    logp = untrained.model(ids[None]).logits[0, :-1, :258].log_softmax(-1)
    of_row = logp.gather(1, ids[1:, None])[-int(rollout.lengths[row]) :, 0]
    expected = rollout.logp[row][rollout.mask[row]]
    torch.testing.assert_close(of_row, expected, atol=2e-5, rtol=0)


def test_the_rows_of_padding_are_not_trained(untrained: Policy) -> None:
    rollout = draw(untrained, temperature=1.0)
    stats = ll.linear_token_stats(
        hidden_states(untrained, rollout), untrained.weight, rollout.targets,
        **untrained.head_options,
    )  # fmt: skip
    untrained.model.zero_grad()
    (stats.logp.sum() + stats.entropy.sum()).backward()
    gradient = untrained.head_parameter.grad
    assert gradient is not None
    if not untrained.tied:
        assert not gradient[258:].any()
    assert gradient[:258].isfinite().all() and gradient[:258].any()


def test_a_head_without_padding_is_as_it_was(tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(tmp_path).model, vocab_size=258)
    assert make_policy(recipe, seed=0).padding is None


def test_every_end_of_the_generation_config_ends_an_answer(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chat models have several: the end of a turn and that of a text."""
    drawn = draw(policy)
    ids = drawn.ids[:, drawn.prompt_length :][drawn.mask].tolist()
    first, second, *_ = sorted({i for i in ids if i < 256}, key=ids.count, reverse=True)
    monkeypatch.setattr(policy.model.generation_config, "eos_token_id", [first, second])
    assert policy.ends == sorted({first, second, policy.eos})
    rollout = draw(policy)
    answers = rollout.ids[:, rollout.prompt_length :]
    last = answers[torch.arange(len(answers)), rollout.lengths - 1]
    ended = rollout.lengths < answers.shape[1]
    assert {first, second} <= set(last[ended].tolist()) <= set(policy.ends)
    for row, length in zip(answers.tolist(), rollout.lengths.tolist(), strict=True):
        assert not set(row[: length - 1]) & set(policy.ends)


def test_an_answer_without_an_end_token_is_truncated() -> None:
    """Token 7 ends an answer, and so does 8; the last answer ends at the last place there is."""
    ids = torch.tensor([[9, 1, 7, 0], [9, 1, 2, 3], [9, 8, 0, 0], [9, 7, 7, 1], [9, 2, 3, 8]])
    lengths = torch.tensor([2, 3, 1, 3, 3])
    mask = torch.arange(3) < lengths[:, None]
    zeros = torch.zeros(5, 3)
    rollout = Rollout(ids, torch.ones_like(ids, dtype=torch.bool), mask, zeros, zeros)
    assert rollout.truncated([7, 8]).tolist() == [False, True, False, True, False]


def test_more_tokens_than_positions_are_refused(policy: Policy) -> None:
    prompt = len(policy.encode(PROMPTS[2:])[0])
    assert policy.positions == 128
    with pytest.raises(ValueError, match=rf"prompt of {prompt} tokens with an answer of up to 109"):
        draw(policy, max_new_tokens=129 - prompt)
    assert draw(policy, group=2, max_new_tokens=128 - prompt).mask.any()
