"""Models of Apple chips: exact counts of work, and the times it should take by published speeds."""
