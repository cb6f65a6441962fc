"""The KV pool: arrays in unified memory that slots point into."""
