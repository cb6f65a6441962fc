"""Pictures and videos in prompts: prepared for the vision model, encoded once, and cached."""
