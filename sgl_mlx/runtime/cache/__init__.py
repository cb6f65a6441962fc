"""The prefix cache: a radix tree over KV slots, and a second tier below it. No MLX."""
