"""The prefix cache: a radix tree over KV slots, with a second tier on disk. It never uses MLX."""
