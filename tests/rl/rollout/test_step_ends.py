"""Places of an answer's text by tokens: a token that goes on behind a place is counted."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

from logitless.rl.policy.tokenizers import make_tokenizer, text_of
from logitless.rl.rollout import token_ends


@pytest.fixture(scope="module")
def pairs() -> Any:
    """A tokenizer whose tokens are "ab", "cd" and single letters."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: i for i, text in enumerate([*letters, "ab", "cd"])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b"), ("c", "d")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", pad_token="<pad>"
    )


def test_a_token_may_end_behind_a_place(pairs: Any) -> None:
    ids = [*pairs("abcdeab").input_ids, pairs.eos_token_id]
    assert len(ids) == 5
    ends = token_ends(ids, [1, 2, 3, 4, 5, 6, 7], pairs, special_tokens=False)
    # the end of the text has the end token as well
    assert ends == [1, 1, 2, 2, 3, 4, 5]
    # where the text has the end token, it is a step like others
    places = [5, 7, 7 + len("<end>")]
    assert text_of(ids, pairs, special_tokens=True) == "abcdeab<end>"
    assert token_ends(ids, places, pairs, special_tokens=True) == [3, 4, 5]


def test_a_character_ends_with_its_last_byte() -> None:
    tokenizer = make_tokenizer("bytes")
    ids = tokenizer("aé€b🙂c").input_ids
    assert len(ids) == 1 + 2 + 3 + 1 + 4 + 1
    ends = token_ends(ids, [1, 2, 3, 4, 5, 6], tokenizer, special_tokens=False)
    assert ends == [1, 3, 6, 7, 11, 12]


def test_tokens_without_a_text() -> None:
    tokenizer = make_tokenizer("bytes")
    ids = [*tokenizer("ab").input_ids, 100_000, *tokenizer("c").input_ids]
    assert len(text_of(ids, tokenizer, special_tokens=False)) == 4
    assert token_ends(ids, [1, 2, 3, 4], tokenizer, special_tokens=False) == [1, 2, 3, 4]
    # an answer that is an end token alone
    assert token_ends([tokenizer.eos_token_id], [0], tokenizer, special_tokens=False) == [1]
