"""Building of a tokenizer from the vocabulary in a GGUF file's metadata.

Two kinds are supported. For byte-level BPE (`gpt2`), GGUF contains only the pre-tokenizer's name.
For SentencePiece BPE (`llama`), the merges are derived from the scores of the pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sgl_mlx import bounds
from sgl_mlx.errors import TokenizerError
from sgl_mlx.tokenizer.ends import END_OF_TURN

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # GGUF's tokenizer.ggml.token_type

_TYPES: Mapping[str, type | tuple[type]] = {
    "model": str,
    "pre": str,
    "tokens": (str,),
    "token_type": (int,),
    "scores": (float,),
    "merges": (str,),
    "add_bos_token": bool,
    "add_space_prefix": bool,
}
"""Types of the entries `tokenizer.ggml.*`; a type in a tuple is that of a list's items."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SINGLE_DIGITS = (r"\p{N}{1,3}", r"\p{N}")
_PATTERNS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _LLAMA3.replace(*_SINGLE_DIGITS)),
    "gpt-4o": _O200K,
    "tekken": _O200K.replace(f"{_CONTRACTIONS}?", "").replace(*_SINGLE_DIGITS),
}
"""Patterns of pre-tokenizers by GGUF's name, taken from the models' own tokenizer.json."""

_GPT2 = {"gpt-2", "default", "phi-2", "olmo", "mpt", "jina-v2-en"}
_GPT2_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}
_QWEN = ("qwen2", "qwen2moe", "qwen3", "qwen3moe")
_BOS_BY_DEFAULT = {"llama-bpe", "llama3", "llama-v3", "tekken"}


def read_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments for `sgl_mlx.tokenizer.Tokenizer` from a GGUF file's metadata.

    Raises:
        TokenizerError: the vocabulary is missing, inconsistent, or of an unknown kind.
    """
    vocabulary = _Vocabulary(metadata)
    if vocabulary.kind == "gpt2":
        backend = _byte_level(vocabulary)
    elif vocabulary.kind == "llama":
        backend = _sentencepiece(vocabulary)
    else:
        raise TokenizerError(
            f"GGUF tokenizer kind {vocabulary.kind!r} is not supported; known are gpt2 and llama"
        )
    backend.add_special_tokens(vocabulary.special())
    backend.add_tokens(vocabulary.plain())
    bos = vocabulary.token_id("bos")
    return {
        "backend": backend,
        "bos_token_id": bos,
        "eos_token_ids": vocabulary.eos_ids(),
        "prefix_ids": [bos] if bos is not None and vocabulary.adds_bos() else [],
        "chat_template": _typed(metadata, "tokenizer.chat_template", str),
        "special_tokens": vocabulary.named(),
    }


class _Vocabulary:
    """The `tokenizer.ggml.*` entries of a GGUF file's metadata, whose types are checked.

    Raises:
        TokenizerError: the kind or the tokens are missing, an entry has a wrong type, or there is
            not one type per token.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        for name in _TYPES:
            self.get(name)  # checks its type
        self.kind: str | None = self.get("model")
        self.tokens: Sequence[str] = self.get("tokens") or ()
        if not self.kind or not self.tokens:
            raise TokenizerError(
                "the GGUF file has no tokenizer (tokenizer.ggml.model and tokenizer.ggml.tokens)"
            )
        self.types: Sequence[int] = self.get("token_type") or [1] * len(self.tokens)
        self.pre: str = self.get("pre") or self._usual_pre()
        if len(self.types) != len(self.tokens):
            raise TokenizerError(
                f"tokenizer.ggml.token_type has {len(self.types)} entries "
                f"for {len(self.tokens)} tokens"
            )

    def _usual_pre(self) -> str:
        """Guess the pre-tokenizer of a file that does not name it, as files before April 2024."""
        if self._metadata.get("general.architecture") in _QWEN:
            return "qwen2"
        return "llama-bpe" if "<|begin_of_text|>" in self.tokens else "default"

    def get(self, name: str) -> Any:
        """Return an entry; None if it is missing.

        Raises:
            TokenizerError: the entry has another type than `_TYPES` says.
        """
        return _typed(self._metadata, f"tokenizer.ggml.{name}", _TYPES[name])

    def token_id(self, name: str) -> int | None:
        """Return the token id in an entry; None if it is missing or outside the vocabulary."""
        found = _typed(self._metadata, f"tokenizer.ggml.{name}_token_id", int)
        return found if found in range(len(self.tokens)) else None

    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def special(self) -> list[AddedToken]:
        """List the special tokens: control and unknown tokens, and those of `END_OF_TURN`."""
        ends = set(self.eos_ids())
        chosen = [
            token
            for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (_CONTROL, _UNKNOWN) or (i in ends and token in END_OF_TURN)
        ]
        return [AddedToken(token, special=True, normalized=False) for token in chosen]

    def plain(self) -> list[AddedToken]:
        """List user-defined tokens that are not special; the tokenizer never splits their texts."""
        special = {token.content for token in self.special()}
        chosen = (t for t, k in zip(self.tokens, self.types, strict=True) if k == _USER_DEFINED)
        return [AddedToken(t, special=False, normalized=False) for t in chosen if t not in special]

    def eos_ids(self) -> list[int]:
        """List the ids of end tokens: those named by the metadata, and those in `END_OF_TURN`."""
        named = map(self.token_id, ("eos", "eot", "eom"))
        ends = {i for i, token in enumerate(self.tokens) if token in END_OF_TURN}
        return sorted({i for i in named if i is not None} | ends)

    def named(self) -> dict[str, str]:
        """Return the texts of the special tokens for chat templates, as `bos_token` and so on."""
        names = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding"}
        ids = {f"{short}_token": self.token_id(name) for short, name in names.items()}
        if ids["sep_token"] is None:  # "seperator" is the spelling in most files
            ids["sep_token"] = self.token_id("separator")
        return {name: self.tokens[i] for name, i in ids.items() if i is not None}

    def adds_bos(self) -> bool:
        stated = self.get("add_bos_token")
        if stated is not None:
            return bool(stated)
        return self.kind == "llama" or self.pre in _BOS_BY_DEFAULT


def _typed(metadata: Mapping[str, Any], key: str, kind: type | tuple[type]) -> Any:
    """Return an entry of a type, or a list of items of the type in a tuple; None if it is missing.

    Raises:
        TokenizerError: the entry has another type.
    """
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(kind, tuple):
        item = (int, float) if kind[0] is float else kind[0]
        fits = isinstance(value, (list, tuple)) and all(isinstance(x, item) for x in value)
        wanted = f"a list of {kind[0].__name__}"
    else:
        fits, wanted = isinstance(value, kind), f"of type {kind.__name__}"
    if not fits:
        raise TokenizerError(f"{key} must be {wanted}, got {bounds.shown(value)}")
    return value


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    merges = vocabulary.get("merges")
    if merges is None:
        raise TokenizerError("a gpt2 tokenizer needs tokenizer.ggml.merges, which is missing")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    ignore_merges = vocabulary.pre in _BOS_BY_DEFAULT
    try:
        model = models.BPE(vocabulary.ids(), pairs, ignore_merges=ignore_merges)
    except Exception as e:  # the library raises bare Exception
        raise TokenizerError(f"tokenizer.ggml.merges do not fit the tokens: {e}") from e
    backend = Tokenizer(model)
    backend.pre_tokenizer = _pre_tokenizer(vocabulary.pre)
    backend.decoder = decoders.ByteLevel()
    if vocabulary.pre in ("qwen2", "deepseek-r1-qwen"):
        backend.normalizer = normalizers.NFC()
    return backend


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in _GPT2:
        return byte_level
    if name in _GPT2_SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    if name not in _PATTERNS:
        known = sorted({*_GPT2, *_GPT2_SINGLE_DIGITS, *_PATTERNS})
        raise TokenizerError(
            f"GGUF pre-tokenizer {name!r} is not known; known are {', '.join(known)}"
        )
    split = pre_tokenizers.Split(Regex(_PATTERNS[name]), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, plain])


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    unk = vocabulary.tokens[vocabulary.token_id("unknown") or 0]
    merges = list(_merges_by_score(vocabulary))
    model = models.BPE(vocabulary.ids(), merges, unk_token=unk, fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    unspaces: list[decoders.Decoder] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if vocabulary.get("add_space_prefix") in (None, True):
        spaces.insert(0, normalizers.Prepend("▁"))
        unspaces.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(unspaces)
    return backend


def _merges_by_score(vocabulary: _Vocabulary) -> Iterator[tuple[str, str]]:
    """Yield pairs of pieces to merge, the pair whose joined piece has the highest score first.

    Raises:
        TokenizerError: there is not one score per token.
    """
    scores = vocabulary.get("scores")
    if scores is None or len(scores) != len(vocabulary.tokens):
        raise TokenizerError(
            f"a llama tokenizer needs one of tokenizer.ggml.scores per token, found "
            f"{0 if scores is None else len(scores)} for {len(vocabulary.tokens)} tokens"
        )
    ids = vocabulary.ids()
    for piece in sorted(ids, key=lambda p: (-scores[ids[p]], ids[p])):
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        known = [(a, b) for a, b in cuts if a in ids and b in ids]
        yield from sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
