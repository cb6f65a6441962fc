"""The KV pool, which stores keys and values by slot, and the memory limits around it."""
