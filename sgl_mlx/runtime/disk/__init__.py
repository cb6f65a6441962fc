"""Second tier of the KV cache on disk: blocks of KV in files, read and written by two threads."""
