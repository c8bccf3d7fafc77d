"""The process that ``app.runs.reader`` starts. It reads run folders into the index and prints its progress as JSON lines.

It ends when its standard input is closed, which also happens if the server is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path

from app.runs.indexer import Indexer
from app.schemas import IndexProgress
from app.store.database import make_engine


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="read all folders again, not only the new ones")
    parser.add_argument("database", type=Path)
    parser.add_argument("runs", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the standard input
    threading.Thread(target=_end_with_server, daemon=True).start()
    indexer = Indexer(make_engine(arguments.database), arguments.runs)
    result = indexer.read_all(_report) if arguments.all else int(indexer.read_new(_report))
    _say(json.dumps({"result": result}))


def _report(progress: IndexProgress) -> None:
    _say(progress.model_dump_json())


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _end_with_server() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
