"""`/v1/contexts`: the language's states over HTTP, to fork, extend, select from and join."""
