"""Tokenizers built from GGUF metadata split and merge as the models' own do."""

from __future__ import annotations

from typing import Any

import pytest

from sgl_mlx.errors import TokenizerError
from sgl_mlx.tokenizer import Tokenizer
from sgl_mlx.tokenizer.bytes import byte_level_alphabet

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6


def byte_level(pre: str | None = "gpt-2", **entries: Any) -> dict[str, Any]:
    """Bytes, the merges of " the" and digits, and two special tokens."""
    merges = ["t h", "th e", "Ġ the", "1 2", "12 3", "' s", "A B", "B a", "a b"]
    tokens = [*byte_level_alphabet(), *(m.replace(" ", "") for m in merges)]
    kinds = [NORMAL] * len(tokens) + [CONTROL, CONTROL, USER_DEFINED]
    tokens += ["<|bos|>", "<|im_end|>", "<think>"]
    return metadata(
        model="gpt2",
        pre=pre,
        tokens=tokens,
        token_type=kinds,
        merges=merges,
        bos_token_id=len(tokens) - 3,
        eos_token_id=0,
        **entries,
    )


def sentencepiece(**entries: Any) -> dict[str, Any]:
    pieces = ["▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    kinds = [2, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)]
    scores = [0.0] * 259 + [-9, -9, -9, -9, -3.0, -2.0, -4.0, -5.0]
    defaults = {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores}
    return metadata(**{**defaults, "bos_token_id": 1, "eos_token_id": 2, **entries})


def metadata(**entries: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{k}": v for k, v in entries.items() if v is not None}


def pieces(meta: dict[str, Any], text: str) -> list[str]:
    tokenizer = Tokenizer.from_gguf(meta)
    return [tokenizer.token_text(i) for i in tokenizer.encode(text, add_special=False)]


def splits(pre: str, text: str) -> list[str]:
    tokenizer = Tokenizer.from_gguf(byte_level(pre))
    spans = [span for _, span in tokenizer.backend.pre_tokenizer.pre_tokenize_str(text)]
    return [text[a:b] for a, b in spans]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["It", "'s", " 12345", "!?\n"]),
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", "5", "!?", "\n"]),
        ("llama-bpe", ["It", "'s", " ", "123", "45", "!?\n"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", "5", "!?\n"]),
        ("gpt-4o", ["It's", " ", "123", "45", "!?\n"]),
        ("tekken", ["It", "'s", " ", "1", "2", "3", "4", "5", "!?\n"]),
    ],
)
def test_text_is_split_as_the_named_pre_tokenizer_does(pre: str, expected: list[str]) -> None:
    text = "It's 12345!?\n"
    if pre == "gpt-2":
        expected = [*expected[:3], "!?", "\n"]
    assert splits(pre, text) == expected


def test_case_changes_end_a_word_where_the_pattern_says_so() -> None:
    assert splits("gpt-4o", "camelCase") == ["camel", "Case"]
    assert splits("llama-bpe", "camelCase") == ["camelCase"]


def test_merges_apply_in_their_order() -> None:
    assert pieces(byte_level(), "the the 123") == ["the", " the", " ", "123"]


def test_an_unnamed_pre_tokenizer_is_gpt2s() -> None:
    assert pieces(byte_level(pre=None), "the 12") == pieces(byte_level("gpt-2"), "the 12")


@pytest.mark.parametrize(
    ("pre", "entries"),
    [
        ("qwen2", {"general.architecture": "qwen2"}),
        ("llama-bpe", {"general.architecture": "llama"}),
    ],
)
def test_a_file_from_before_pre_tokenizers_were_named_splits_as_its_kind(
    pre: str, entries: dict[str, Any]
) -> None:
    old, named = byte_level(pre=None) | entries, byte_level(pre) | entries
    for meta in (old, named):
        tokens = meta["tokenizer.ggml.tokens"]
        if pre == "llama-bpe":
            tokens[tokens.index("<|bos|>")] = "<|begin_of_text|>"
    text = "It's 12345!?\n"
    found, expected, other = (
        Tokenizer.from_gguf(meta).backend.pre_tokenizer.pre_tokenize_str(text)
        for meta in (old, named, byte_level())
    )
    assert found == expected != other


@pytest.mark.parametrize("key", ["seperator_token_id", "separator_token_id"])
def test_the_separator_is_found_under_both_spellings(key: str) -> None:
    meta = byte_level(**{key: 3}) | {"tokenizer.chat_template": "{{ sep_token }}"}
    assert Tokenizer.from_gguf(meta).render_chat([]) == meta["tokenizer.ggml.tokens"][3]


def test_control_tokens_are_special_and_user_defined_ones_are_text() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level())
    ids = tokenizer.encode("<think>a<|im_end|>")
    assert len(ids) == 3
    assert tokenizer.decode(ids) == "<think>a"


def test_known_ends_of_turn_end_an_answer_besides_the_one_named() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level())
    assert {tokenizer.token_text(i) for i in tokenizer.eos_token_ids} == {"!", "<|im_end|>"}


@pytest.mark.parametrize(
    ("pre", "stated", "added"),
    [
        ("gpt-2", None, False),
        ("gpt-2", True, True),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
    ],
)
def test_bos_is_added_as_stated_or_as_the_kind_does(
    pre: str, stated: bool | None, added: bool
) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level(pre, add_bos_token=stated))
    assert (tokenizer.encode("a")[0] == tokenizer.bos_token_id) == added


def test_sentencepiece_joins_the_best_scored_pair_first() -> None:
    assert pieces(sentencepiece(), "abc") == [" a", "bc"]
    assert pieces(sentencepiece(), "ab") == [" ab"]


def test_sentencepiece_spells_unknown_characters_in_bytes() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece())
    ids = tokenizer.encode("aé", add_special=False)
    assert [tokenizer.token_bytes(i) for i in ids] == [b" a", b"\xc3", b"\xa9"]
    assert tokenizer.decode(ids) == "aé"


def test_the_prefix_space_is_left_out_where_the_file_says_so() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece(add_space_prefix=False))
    ids = tokenizer.encode("ab a", add_special=False)
    assert [tokenizer.token_text(i) for i in ids] == ["ab", " a"]
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


def test_the_chat_template_comes_from_the_file() -> None:
    meta = byte_level() | {"tokenizer.chat_template": "{{ messages[0].content }}!"}
    assert Tokenizer.from_gguf(meta).render_chat([{"content": "Hi"}]) == "Hi!"


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "has no tokenizer"),
        (byte_level() | {"tokenizer.ggml.model": "t5"}, "kind 't5' is not supported"),
        (byte_level("weird"), "pre-tokenizer 'weird' is not known; known are .*smollm"),
        (byte_level() | {"tokenizer.ggml.token_type": [1]}, "1 entries for 268 tokens"),
        (byte_level() | {"tokenizer.ggml.merges": None}, "merges, which is missing"),
        (byte_level() | {"tokenizer.ggml.merges": ["no such"]}, "merges do not fit the tokens"),
        (byte_level() | {"tokenizer.ggml.merges": ["single"]}, "merges do not fit the tokens"),
        (sentencepiece(scores=[1.0]), "found 1 for 267 tokens"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused(meta: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_gguf(meta)


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED])
@pytest.mark.parametrize("named", ["<|im_end|>", "!"])
def test_an_end_of_turn_ends_an_answer_whatever_its_type_and_is_not_shown(
    kind: int, named: str
) -> None:
    meta = byte_level()
    tokens = meta["tokenizer.ggml.tokens"]
    meta["tokenizer.ggml.token_type"][tokens.index("<|im_end|>")] = kind
    meta["tokenizer.ggml.eos_token_id"] = tokens.index(named)
    tokenizer = Tokenizer.from_gguf(meta)
    ids = tokenizer.encode("a<|im_end|>")
    assert ids[-1] in tokenizer.eos_token_ids
    assert tokenizer.decode(ids) == "a"


def test_a_template_is_given_the_end_token_that_the_file_names() -> None:
    meta = byte_level() | {"tokenizer.chat_template": "{{ bos_token }}{{ eos_token }}"}
    meta["tokenizer.ggml.eos_token_id"] = meta["tokenizer.ggml.tokens"].index("<|im_end|>")
    assert Tokenizer.from_gguf(meta).render_chat([]) == "<|bos|><|im_end|>"


@pytest.mark.parametrize("key", ["model", "pre", "tokens", "token_type", "scores", "merges"])
@pytest.mark.parametrize("wrong", [5, 1.5, ["a", 5], {"a": 1}, [[1]], True])
def test_an_entry_of_a_wrong_type_is_refused_by_its_name(key: str, wrong: object) -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "a"],
        "tokenizer.ggml.scores": [0.0, 0.0],
        f"tokenizer.ggml.{key}": wrong,
    }
    with pytest.raises(TokenizerError):
        Tokenizer.from_gguf(metadata)
