"""The trainer host: a warm process that forks a child for each run."""
