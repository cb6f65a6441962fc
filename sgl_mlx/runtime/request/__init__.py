"""Requests: prompts to tokens, tokens to text, and the futures that callers hold."""
