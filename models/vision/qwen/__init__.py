"""Pictures for Qwen's models: one grid of patches of the picture's own shape, and M-RoPE."""
