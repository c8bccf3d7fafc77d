"""The index in SQLite, and readers for the files in run folders."""
