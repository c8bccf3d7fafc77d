"""The command ``runoff serve``. A start that fails prints one sentence, and SIGTERM or SIGINT ends it without a traceback."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

import trainer
from app import resources
from app.settings import Settings, SettingsError, load_settings
from trainer.i18n import _

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.server import Prepared

_LOOK_AT_PARENT_SECONDS = 1.0


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: RUNOFF_HOST or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default: RUNOFF_PORT or 8000.")] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Restart when the code changes; runs continue.")] = False,
) -> None:
    """Start the server. It ends with status 0 on SIGTERM or Ctrl-C, and its runs continue."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: sys.exit(0))
    settings = load_settings(host=host, port=port)
    os.environ.update(RUNOFF_HOME=str(settings.home), RUNOFF_HOST=settings.host, RUNOFF_PORT=str(settings.port))

    from app.server import lock_home, prepare
    from app.web.listening import raise_file_limit

    raise_file_limit()
    with lock_home(settings) as lock:
        sockets = _bind(settings)
        uploads = settings.home / "uploads"
        uploads.mkdir(exist_ok=True)
        tempfile.tempdir = str(uploads)  # large uploads are kept next to the data sets, not in a small /tmp
        prepared = prepare(settings)
        if reload:
            prepared.engine.dispose()
            for bound in sockets:
                bound.close()
            _serve_with_reload(settings)
        else:
            _serve(settings, lock, prepared, sockets)


def _serve(settings: Settings, lock: IO[bytes], prepared: Prepared, sockets: list[socket.socket]) -> None:
    from app.main import create_app
    from app.server import serving, settle_memory
    from app.web.listening import Server

    with serving(settings, train=True, lock=lock, prepared=prepared) as state:
        server = Server(create_app(settings, state=state), at_end=state.ending.set)
        settle_memory()
        _greet(settings)
        server.run(sockets)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the shutdown


def _serve_with_reload(settings: Settings) -> None:
    """Serve in a child process that is replaced when the code changes. This process holds the lock on the home."""
    import uvicorn
    from uvicorn.config import LOGGING_CONFIG

    from app.logs import uvicorn_config

    _greet(settings)
    os.environ["PYTHONSAFEPATH"] = "1"  # the child must not import modules from the working folder
    uvicorn.run(
        "app.cli.serve:app_of_child",
        factory=True,
        host=settings.host,
        port=settings.port,
        reload=True,
        log_level="warning",
        log_config=uvicorn_config(LOGGING_CONFIG),
        reload_dirs=_watched(),
        timeout_graceful_shutdown=2,
        timeout_keep_alive=30,
    )


def app_of_child() -> FastAPI:
    """The application in the child of a server with ``--reload``, whose parent has locked the home."""
    from app.main import create_app

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return create_app(lock=Path(os.devnull).open("rb"))


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, for the lock on the home ends with that."""
    while os.getppid() == parent:
        time.sleep(_LOOK_AT_PARENT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _greet(settings: Settings) -> None:
    typer.echo(
        _("Runoff serves {url} from {home}").format(url=f"http://{settings.host}:{settings.port}", home=settings.home)
    )
    if settings.required_token() and not settings.token:
        typer.echo(_("Other machines can reach this address, so a token is required; runoff token prints it."))


def _watched() -> list[str]:
    """The folders whose changes restart a server with ``--reload``."""
    packages = [resources.PACKAGE, Path(trainer.__file__).parent]
    return [str(path) for path in [*packages, resources.folder("templates")]]


def _bind(settings: Settings) -> list[socket.socket]:
    from app.web.listening import bind

    try:
        return bind(settings.host, settings.port)
    except OSError as error:
        raise SettingsError(
            _("{host}:{port} can't be used: {reason}. Choose another with --port.").format(
                host=settings.host, port=settings.port, reason=error.strerror
            )
        ) from None
