"""Coverage-guided fuzzing of everything that reads files or pictures; for development only."""
