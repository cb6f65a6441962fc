"""Chat templates: how the turns of a conversation are written."""
