"""Chat templates: how the turns of a conversation become text."""
