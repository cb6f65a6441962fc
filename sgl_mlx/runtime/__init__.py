"""The engine: radix-cached, continuously batched generation. Knows nothing of the language."""
