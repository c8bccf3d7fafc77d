"""Fetches one file from a list of addresses: streamed, checked by MD5, all or nothing, and quick to give up.

Which files, and what they are for, is the business of ``originals``.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from trainer.datasets.facts import PARTIAL
from trainer.i18n import _

_CONNECT_SECONDS = 6.0  # for all addresses together: name, connection and first answer
_SILENCE_SECONDS = 20.0
_CHUNK_BYTES = 1 << 18
_LARGEST = 1 << 30

Received = Callable[[int, int], None]  # bytes so far, bytes in all (0: unknown)


class DownloadFailed(Exception):
    """No address gave the file; ``reason`` is a phrase such as "no connection"."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class Remote:
    """A file to fetch: its addresses in the order to try them, and the MD5 of its bytes."""

    urls: tuple[str, ...]
    md5: str


def fetch(remote: Remote, target: Path, received: Received) -> None:
    """Download into ``target``; it exists only when complete and checked. Raises ``DownloadFailed``."""
    partial = target.with_name(target.name + PARTIAL)
    try:
        _try_all(remote, partial, received)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def md5_of(path: Path) -> str:
    """The MD5 of a file's bytes, in hex: what torchvision states for its archives, against damage."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _try_all(remote: Remote, partial: Path, received: Received) -> None:
    deadline = time.monotonic() + _CONNECT_SECONDS
    reasons: list[str] = []
    for url in remote.urls:
        try:
            _stream(url, partial, received, deadline)
        except DownloadFailed as failure:
            reasons.append(failure.reason)
            continue
        if md5_of(partial) == remote.md5:
            return
        reasons.append(_("the downloaded file is damaged (its checksum is wrong)"))
    raise DownloadFailed(_most_telling(reasons))


def _most_telling(reasons: Sequence[str]) -> str:
    """The first reason that says more than that there is no connection."""
    plain = _("no connection")
    return next((reason for reason in reasons if reason != plain), plain)


def _stream(url: str, partial: Path, received: Received, deadline: float) -> None:
    response = _open(url, deadline)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with closing(response), partial.open("wb") as file:
        total, done = int(response.headers.get("Content-Length") or 0), 0
        while chunk := _read(response):
            file.write(chunk)
            done += len(chunk)
            received(done, total)
            if done > _LARGEST:
                raise DownloadFailed(_("the downloaded file is far too large"))
        file.flush()
        os.fsync(file.fileno())
    if total and done != total:
        raise DownloadFailed(_("the connection was lost"))


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException):
        raise DownloadFailed(_("the connection was lost")) from None


def _open(url: str, deadline: float) -> http.client.HTTPResponse:
    """Look up the address in a separate thread, because name resolution has no time limit."""
    answers: list[http.client.HTTPResponse | Exception] = []

    def ask() -> None:
        try:
            answers.append(urllib.request.urlopen(url, timeout=_SILENCE_SECONDS))
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(max(deadline - time.monotonic(), 0.1))
    if not answers:
        raise DownloadFailed(_("no connection"))
    if isinstance(answers[0], Exception):
        raise DownloadFailed(_reason(answers[0]))
    return answers[0]


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return _("the server answered {code}").format(code=error.code)
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLError):
        return _("the certificate of the server could not be checked")
    return _("no connection")
