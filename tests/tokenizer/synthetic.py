"""Small tokenizers of every kind that model folders hold, made on the spot."""

from __future__ import annotations

from functools import cache

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from sgl_mlx.tokenizer import Tokenizer

CORPUS = [
    "The capital of France is Paris; 42 or 1,234.5 people said: yes, no, maybe!",
    'def f(x):\n    return {"name": "Müller", "age": 37, "tags": ["a", "b"]}\n',
    "Straße, café, naïve, 日本語の文章, Ελλάδα, 😀 and 🦊 are words too.",
    "<table><tr><td>cell</td></tr></table> user assistant system tool call",
] * 3

SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]
TOOLS = ["<tool_call>", "</tool_call>", "<think>", "    ", "\n\n"]
FOREIGN = ["Müller", "日本", "<é>", "😀😀", "<table>"]
SPM_DECODER = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
)


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2's kind: every byte has a printable letter."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def metaspace() -> tokenizers.Tokenizer:
    """Llama-2's kind: `▁` for a space, bytes for what the vocabulary lacks."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=520, special_tokens=[*SPECIALS, *BYTES], limit_alphabet=60, show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    vocabulary = trained.get_vocab()
    pairs = [(a, b) for w in vocabulary for a, b in _cuts(w) if a in vocabulary and b in vocabulary]
    merges = sorted(pairs, key=lambda pair: vocabulary["".join(pair)])
    made = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence([*_steps(), decoders.Strip(" ", 1, 0)])
    _add(made, SPECIALS, special=True)
    return made


def unigram() -> tokenizers.Tokenizer:
    """T5's and XLM's kind, with bytes for what the vocabulary lacks."""
    words = dict.fromkeys(w for line in CORPUS for w in line.replace(" ", " ▁").split(" "))
    letters = dict.fromkeys("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPRST.,:;!?\"'{}[]()<>/|_-")
    pieces = [(w, -3.0) for w in words if len(w) > 1] + [(c, -6.0) for c in letters]
    specials = [(s, 0.0) for s in SPECIALS]
    table = [*specials, *((b, -20.0) for b in BYTES), *pieces]
    made = tokenizers.Tokenizer(models.Unigram(table, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = SPM_DECODER
    _add(made, SPECIALS, special=True)
    return made


def with_added() -> tokenizers.Tokenizer:
    """Tool calls as special tokens, thoughts and runs of blanks as plain ones."""
    made = byte_level()
    _add(made, TOOLS[:2], special=True)
    _add(made, TOOLS[2:], special=False)
    return made


def with_duplicates() -> tokenizers.Tokenizer:
    """Several tokens for one text: letters beside their bytes, words added once more."""
    made = metaspace()
    _add(made, ["▁▁", " user", "▁user", "a", "tool"], special=False)
    return made


def with_foreign() -> tokenizers.Tokenizer:
    """Added tokens outside ASCII, whose letters also occur in the byte-level alphabet."""
    made = byte_level()
    _add(made, FOREIGN, special=False)
    _add(made, ["<|Ü|>"], special=True)
    return made


def hybrid() -> tokenizers.Tokenizer:
    """A byte-level vocabulary with a decoder of the other kind, as some conversions have."""
    made = byte_level()
    made.decoder = decoders.Sequence([*_steps(), decoders.Strip(" ", 1, 0)])
    return made


def foreign_metaspace() -> tokenizers.Tokenizer:
    made = metaspace()
    _add(made, FOREIGN, special=False)
    return made


KINDS = {
    "byte-level": byte_level,
    "metaspace": metaspace,
    "unigram": unigram,
    "added": with_added,
    "duplicates": with_duplicates,
    "foreign": with_foreign,
    "hybrid": hybrid,
    "foreign-metaspace": foreign_metaspace,
}


@cache
def tokenizer(kind: str) -> Tokenizer:
    """A tokenizer of one of `KINDS` that ends at `</s>` and `<|im_end|>`."""
    backend = KINDS[kind]()
    ends = [backend.token_to_id("</s>"), backend.token_to_id("<|im_end|>")]
    return Tokenizer(backend, bos_token_id=backend.token_to_id("<s>"), eos_token_ids=ends)


def _add(made: tokenizers.Tokenizer, names: list[str], special: bool) -> None:
    made.add_tokens([AddedToken(n, special=special, normalized=False) for n in names])


def _cuts(word: str) -> list[tuple[str, str]]:
    return [(word[:i], word[i:]) for i in range(1, len(word))]


def _steps() -> list[decoders.Decoder]:
    return [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
