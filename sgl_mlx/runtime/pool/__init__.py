"""The KV pool: keys and values in memory, indexed by slot; its size and recovery."""
