"""`/v1/contexts`: prompts kept on the server, to extend, fork, join, and generate from."""
