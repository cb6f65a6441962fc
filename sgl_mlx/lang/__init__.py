"""The language: programs whose steps are calls of a language model. Knows no runtime."""
