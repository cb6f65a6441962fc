"""The pass that changes prompts: instructions move ahead of arguments, if a judge allows it."""
