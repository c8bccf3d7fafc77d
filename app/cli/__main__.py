"""``python -m app.cli`` is the command ``runoff``."""

from app.cli import main

main()
