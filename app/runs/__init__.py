"""Runs: planning, starting, changing, scheduling."""
