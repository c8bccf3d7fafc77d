"""The command line ``runoff``."""

from app.cli.commands import main

__all__ = ["main"]
