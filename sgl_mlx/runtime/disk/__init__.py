"""Second tier of the KV cache on disk: blocks of KV as files, read and written by own threads."""
