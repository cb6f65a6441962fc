"""The KV pool: keys and values in unified memory, indexed by slot."""
