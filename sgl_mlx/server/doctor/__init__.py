"""The cache doctor: where a prompt stops matching an earlier, cached prompt, and why."""
