"""SGLang's own HTTP protocol: `/generate`, model and server information, and tokenization."""
