"""Pictures of prompts: prepared, encoded once, and cached."""
