"""The cache doctor: where a prompt left the cached prefix of an earlier one, and why."""
