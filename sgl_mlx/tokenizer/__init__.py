"""Tokenizers: text to tokens and back, chat templates, and reading of their files."""

from sgl_mlx.tokenizer.tokenizer import Detokenizer, Tokenizer

__all__ = ["Detokenizer", "Tokenizer"]
