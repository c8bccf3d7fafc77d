"""How Runoff starts a second Python process. Every child is started through here. Imports nothing heavy."""

from __future__ import annotations

import sys


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` in a new interpreter, as ``python -m module`` does, wherever it is started.

    ``-P`` keeps the current folder out of ``sys.path``. Without it a stranger's file there, say ``trainer.py`` or
    ``numpy.py``, would be imported instead of the installed package.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
