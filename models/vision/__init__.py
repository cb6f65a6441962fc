"""Pictures for language models, from files to features.

LLaVA's families are in this folder, Qwen's in `qwen/`.

`VisionModel.prepare` turns a picture into pixels and counts its tokens, without mlx and on any
thread. `VisionModel.encode` turns prepared pictures into features, on the thread that runs the
model.
"""
