"""OpenAI's protocol: chat completions and completions, with SGLang's and vLLM's extras."""
