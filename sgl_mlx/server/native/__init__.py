"""SGLang's own protocol: `/generate`, information about model and server, tokens."""
