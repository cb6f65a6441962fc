"""Anthropic's protocol: messages, whole and streamed, and counting of tokens."""
