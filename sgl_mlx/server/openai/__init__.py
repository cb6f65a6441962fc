"""OpenAI's HTTP protocol: chat completions, completions and responses.

Fields that SGLang and vLLM add are accepted too.
"""
