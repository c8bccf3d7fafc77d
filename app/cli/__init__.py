"""The command line ``runoff``."""

import signal


def main() -> None:
    """The entry point of the command ``runoff``."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are loaded ends without a traceback
    from app.cli import commands

    signal.signal(signal.SIGINT, signal.default_int_handler)
    commands.main()
