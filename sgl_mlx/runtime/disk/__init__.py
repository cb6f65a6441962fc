"""The second tier on disk: blocks of KV as files, written behind and read ahead."""
