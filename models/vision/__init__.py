"""Pictures for language models: the LLaVA families, from files to features.

`prepare` turns a picture into pixels and knows how many tokens it will take, without mlx and on
any thread; `encode` turns prepared pictures into features, on the thread that runs the model.
"""
