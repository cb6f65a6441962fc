"""Requests: their prompts encoded to tokens, their outputs decoded to text, their futures."""
