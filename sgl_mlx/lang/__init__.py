"""The language: Python programs that call language models. It imports no runtime."""
