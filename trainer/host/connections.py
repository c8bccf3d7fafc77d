"""The host's socket and its clients. Nothing here blocks, so a slow client does not delay the others."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer import wire

MAX_UNSENT = 4 * 2**20  # bytes that a client may leave unread before it is dropped
_RECEIVE = 2**18  # most bytes per read


@dataclass(eq=False)
class Connection:
    """A client's socket with its buffers."""

    socket: socket.socket
    inbox: bytearray = field(default_factory=bytearray)  # received, not yet a complete line
    outbox: bytearray = field(default_factory=bytearray)  # not yet sent
    is_open: bool = True


class Connections:
    """The listening socket and its clients.

    Each client is sent ``greeting``, and each line that it sends is passed to ``handle``. The ``data`` of a selector key
    is the callback for its socket.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        greeting: dict[str, Any],
        handle: Callable[[Connection, bytes], None],
    ) -> None:
        self._selector = selector
        self._greeting = greeting
        self._handle = handle
        self._open: set[Connection] = set()
        self._listener: socket.socket | None = None

    def __len__(self) -> int:
        return len(self._open)

    def listen(self, path: Path) -> None:
        """Listen on a Unix socket at ``path`` that only this user can open."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._listener.bind(os.fspath(path))
        finally:
            os.umask(mask)
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Close all sockets without unregistering them: for a host that exits, and for a forked child."""
        if self._listener is not None:
            self._listener.close()
        for connection in self._open:
            connection.socket.close()

    def send(self, connection: Connection, message: dict[str, Any]) -> None:
        """Queue a message and send as much as the client accepts. Nothing happens if the client has disconnected."""
        if connection.is_open:
            connection.outbox += wire.encode(message)
            self._flush(connection)

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            client, _address = self._listener.accept()
        except OSError:  # the client has disconnected, or no file descriptor is free
            return
        if not wire.peer_is_this_user(client):
            client.close()
            return
        client.setblocking(False)
        connection = Connection(client)
        self._open.add(connection)
        self._selector.register(client, selectors.EVENT_READ, lambda events: self._serve(connection, events))
        self.send(connection, self._greeting)

    def _serve(self, connection: Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(connection)
        if events & selectors.EVENT_READ and connection.is_open:
            self._receive(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.inbox += data
        while connection.is_open and (end := connection.inbox.find(b"\n")) >= 0:
            line = bytes(connection.inbox[:end])
            del connection.inbox[: end + 1]
            self._handle(connection, line)
        if len(connection.inbox) > wire.MAX_LINE:
            self.send(connection, wire.error("bad request", "The line is too long."))
            self._drop(connection)

    def _flush(self, connection: Connection) -> None:
        try:
            sent = connection.socket.send(connection.outbox)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        del connection.outbox[:sent]
        if len(connection.outbox) > MAX_UNSENT:
            self._drop(connection)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.outbox else 0)
        key = self._selector.get_key(connection.socket)
        if key.events != wanted:
            self._selector.modify(connection.socket, wanted, key.data)

    def _drop(self, connection: Connection) -> None:
        if connection.is_open:
            connection.is_open = False
            self._open.discard(connection)
            self._selector.unregister(connection.socket)
            connection.socket.close()
