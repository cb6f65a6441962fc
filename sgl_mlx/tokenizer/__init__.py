"""Tokenizers: text to tokens and back, chat templates, and the files that both come from."""

from sgl_mlx.tokenizer.tokenizer import Detokenizer, Tokenizer

__all__ = ["Detokenizer", "Tokenizer"]
