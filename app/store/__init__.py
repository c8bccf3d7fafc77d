"""The index in SQLite and what is read from run folders."""
