"""The pass that changes prompts: it moves instructions ahead of arguments if rules allow it."""
