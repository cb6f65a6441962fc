"""Anthropic's HTTP protocol: `/v1/messages`, whole and streamed, and token counting."""
