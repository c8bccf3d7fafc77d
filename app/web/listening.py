"""The HTTP server under the application: its sockets, the limit on connections, and its end."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import LOGGING_CONFIG
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.errors import Unavailable
from app.logs import uvicorn_config
from trainer.i18n import _

BACKLOG = 128  # connections that wait to be accepted
IDLE_SECONDS = 30  # after which a connection without a request is closed
_REFUSED_SECONDS = 5  # how long a connection above the limit has for its request, which gets a 503
_FILES_OF_SERVER = 16  # open files of a server without a request
_FILES_PER_CONNECTION = 3  # its socket, and the index with its journal while a request is handled
_RETRY_SECONDS = "2"


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on all addresses of ``host``. Raises ``OSError``, for example if the port is in use."""
    listening: list[socket.socket] = []
    missing: OSError | None = None
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _name, address in dict.fromkeys(infos):
        try:
            bound = socket.socket(family, kind, protocol)
        except OSError as error:  # such as a machine without IPv6
            missing = error
            continue
        listening.append(bound)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
            bound.listen(BACKLOG)  # two sockets may be bound at the same moment, but only one can listen
            bound.setblocking(False)
        except OSError:
            for each in listening:
                each.close()
            raise
    if not listening and missing is not None:
        raise missing
    return listening


def most_connections() -> int:
    """How many connections the limit on open files allows, with the files that each needs while it is handled."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        limit = 2**20  # connections
    return max(2, (limit - _FILES_OF_SERVER) // _FILES_PER_CONNECTION)


def raise_file_limit() -> None:
    """Raise the limit on open files as far as this process may."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS allows less than it reports
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Protocol(H11Protocol):
    """HTTP/1.1 that answers 503 above a number of connections, and closes one that never sends a whole request."""

    limit = 2**20
    _head_timer: asyncio.TimerHandle | None = None  # set while a request has begun whose head is not complete

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_head_due = self.cycle is None or self.cycle.response_complete
        if not is_head_due and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        elif is_head_due and self._head_timer is None:
            self._head_timer = self.loop.call_later(IDLE_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._head_timer is not None:
            self._head_timer.cancel()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        count = len(self.connections)
        if count > 2 * self.limit:
            transport.abort()
        elif count > self.limit:
            self.app = _busy
            self.loop.call_later(_REFUSED_SECONDS, transport.close)
        else:
            self.timeout_keep_alive_task = self.loop.call_later(IDLE_SECONDS, self.timeout_keep_alive_handler)


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    problem = Unavailable(_("The server has too many connections. Try again in a few seconds."))
    headers = {"retry-after": _RETRY_SECONDS, "connection": "close"}
    answer = Response(json.dumps(problem.body()), 503, headers, "application/problem+json")
    await answer(scope, receive, send)


class Server(uvicorn.Server):
    """A server that ends with status 0 on SIGTERM and SIGINT. It calls ``at_end`` at once, so that streams end."""

    def __init__(self, app: ASGIApp, at_end: Callable[[], None]) -> None:
        Protocol.limit = most_connections()
        config = uvicorn.Config(
            app,
            http=Protocol,
            backlog=BACKLOG,
            log_level="warning",
            log_config=uvicorn_config(LOGGING_CONFIG),
            timeout_graceful_shutdown=2,
            timeout_keep_alive=IDLE_SECONDS,
        )
        super().__init__(config)
        self._at_end = at_end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End within seconds, as ``timeout_graceful_shutdown`` says; a second signal changes nothing."""
        self.should_exit = True
        self._at_end()
