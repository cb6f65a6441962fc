"""A model's tokenizer with the interface of `transformers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgl_mlx.tokenizer import Tokenizer

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "mask_token")


class Encoding(dict[str, Any]):
    """The token ids and attention mask of a text, as items and as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class TransformersTokenizer:
    """A tokenizer with the common methods of `transformers`, and all attributes of `Tokenizer`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool = True, **_: Any) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens)

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **_: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        return self._tokenizer.decode(ids, skip_special_tokens)

    def batch_decode(self, sequences: Sequence[Any], **options: Any) -> list[str]:
        return [self.decode(ids, **options) for ids in sequences]

    def __call__(self, text: str | Sequence[str], **options: Any) -> Encoding:
        """Return the token ids and attention mask of a text, or of each text in a list."""
        if isinstance(text, str):
            ids = self.encode(text, options.get("add_special_tokens", True))
            return Encoding(input_ids=ids, attention_mask=[1] * len(ids))
        rows = [self(each, **options) for each in text]
        return Encoding(
            {key: [row[key] for row in rows] for key in ("input_ids", "attention_mask")}
        )

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str | list[int]:
        """Write the conversation with the chat template of the model; return token ids, or text.

        Args:
            tokenize: True returns token ids, False text.
            add_generation_prompt: True opens a turn of the assistant at the end.
            variables: further variables of the template.

        Raises:
            TokenizerError: the model has no template, or the template rejects the conversation.
        """
        variables.pop("return_tensors", None)
        text = self._tokenizer.render_chat(conversation, add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        if isinstance(ids, int):
            return self._tokenizer.backend.id_to_token(ids)
        return [self._tokenizer.backend.id_to_token(int(i)) for i in ids]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        if isinstance(tokens, str):
            return self._tokenizer.backend.token_to_id(tokens)
        return [self._tokenizer.backend.token_to_id(token) for token in tokens]

    def get_vocab(self) -> dict[str, int]:
        return dict(self._tokenizer.backend.get_vocab())

    def __len__(self) -> int:
        return self._tokenizer.vocab_size

    def __getattr__(self, name: str) -> Any:
        """Return a special token, its id (`eos_token`, `eos_token_id`), or a `Tokenizer` attribute.

        A special token that the model does not name is None.
        """
        text = name.removesuffix("_id")
        if text not in _SPECIAL_TOKENS:
            return getattr(self._tokenizer, name)
        found = self._tokenizer.named_tokens().get(text)
        return found if found is None or name == text else self.convert_tokens_to_ids(found)
