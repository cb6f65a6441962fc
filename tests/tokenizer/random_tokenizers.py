"""Tokenizers drawn at random from all that model folders combine, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.tokenizer.synthetic import BYTES, CORPUS, FOREIGN, SPECIALS, TOOLS

_SPLITS = [
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+",
    r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
]
_MORE = ["<|call|>", "<|Ü|>", "user", "ab", "▁▁", "  ", "\t", "𝄞", "<0x41>x"]


def random_tokenizer(seed: int) -> tokenizers.Tokenizer:
    """Draw a kind, a vocabulary, the steps around it, added tokens and a post-processor."""
    rng = random.Random(f"tokenizer {seed}")
    made = rng.choice(_KINDS)(rng)
    _add_tokens(made, rng)
    if rng.random() < 0.7:
        bos = ("<s>", made.token_to_id("<s>"))
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    if rng.random() < 0.3:
        made.enable_truncation(rng.randint(1, 9))
        made.enable_padding(length=rng.randint(1, 9))
    return made


def _byte_level(rng: random.Random) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    plain, digits = rng.random() < 0.4, rng.random() < 0.3
    prefix = plain and not digits and rng.random() < 0.5  # else before every word
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=plain)]
    if not plain:
        steps.insert(0, pre_tokenizers.Split(Regex(rng.choice(_SPLITS)), "isolated"))
    if digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    made.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    if rng.random() < 0.3:
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(made, trainers.BpeTrainer, rng, special_tokens=SPECIALS, initial_alphabet=alphabet)
    return made


def _metaspace(rng: random.Random) -> tokenizers.Tokenizer:
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = [*SPECIALS, *BYTES]
    _train(trained, trainers.BpeTrainer, rng, special_tokens=specials, limit_alphabet=60)
    vocabulary = trained.get_vocab()
    cuts = ((w[:i], w[i:]) for w in vocabulary for i in range(1, len(w)))
    pairs = [(a, b) for a, b in cuts if a in vocabulary and b in vocabulary]
    merges = sorted(pairs, key=lambda pair: vocabulary["".join(pair)])
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    _spaces(made, rng)
    made.add_special_tokens(SPECIALS)
    return made


def _unigram(rng: random.Random) -> tokenizers.Tokenizer:
    lines = rng.sample(CORPUS, 6)
    words = dict.fromkeys(w for line in lines for w in line.replace(" ", " ▁").split(" "))
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPRST.,:;!?\"'{}[]()<>/|_-"
    pieces = [(w, -rng.uniform(2, 4)) for w in words if len(w) > 1]
    table = [*((s, 0.0) for s in SPECIALS), *((b, -20.0) for b in BYTES), *pieces]
    table += [(c, -6.0) for c in letters]
    made = tokenizers.Tokenizer(models.Unigram(table, unk_id=0, byte_fallback=True))
    _spaces(made, rng)
    made.add_special_tokens(SPECIALS)
    return made


_KINDS: list[Callable[[random.Random], tokenizers.Tokenizer]] = [
    _byte_level,
    _byte_level,
    _metaspace,
    _unigram,
]


def _spaces(made: tokenizers.Tokenizer, rng: random.Random) -> None:
    """Let `▁` stand for spaces: by the normalizer, as Llama 2 has it, or by the pre-tokenizer."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    scheme = rng.choice(["first", "always", "never", "normalizer"])
    if scheme == "normalizer":
        prepend = [normalizers.Prepend("▁")] if rng.random() < 0.5 else []
        made.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        prepend = [scheme] * (scheme != "never")
    made.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prepend else [])])


def _train(made: tokenizers.Tokenizer, trainer: type, rng: random.Random, **how: object) -> None:
    size = rng.randint(340, 700)
    made.train_from_iterator(
        rng.sample(CORPUS, 6), trainer(vocab_size=size, show_progress=False, **how)
    )


def _add_tokens(made: tokenizers.Tokenizer, rng: random.Random) -> None:
    """Add tokens: special or not, and at times ones that take the blanks beside them."""
    texts = rng.sample([*TOOLS, *FOREIGN, *_MORE], rng.randint(0, 6))
    for text in texts:
        flags = {name: rng.random() < 0.15 for name in ("lstrip", "rstrip", "single_word")}
        special = rng.random() < 0.4
        made.add_tokens([AddedToken(text, special=special, normalized=False, **flags)])
