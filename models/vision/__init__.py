"""Pictures for language models of the LLaVA families, from files to features.

`VisionModel.prepare` turns a picture into pixels and counts its tokens, without mlx and on any
thread. `VisionModel.encode` turns prepared pictures into features, on the thread that runs the
model.
"""
