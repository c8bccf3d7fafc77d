"""Checks of every request (host name, token, origin of writes), and the headers of every response."""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InsufficientStorage, Problem, Unavailable
from app.runs.room import Room
from app.settings import Settings
from app.web.problems import answer_problem, as_problem
from trainer.i18n import _

POLICY = "; ".join(
    [
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
COOKIE = "runoff_token"
_SAFE = {"GET", "HEAD", "OPTIONS"}
_OPEN_PATHS = {"/healthz", "/login"}
_UPLOAD_PATHS = {"/datasets", "/api/v1/datasets"}  # read to a file on the disk, not into memory
LARGEST_BODY = 2 * 2**20  # bytes, of any other request
_COPIES = 2  # of an upload on the disk: as received, and as kept until it is imported
_LOOK_BYTES = 16 * 2**20  # of an upload between two checks of the free space


class Guard:
    """ASGI middleware that checks requests before any route runs, and adds headers to every response."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.hosts = settings.host_names
        self.any_host = not settings.is_loopback and not settings.allowed_hosts
        self.token = settings.required_token()
        self.home, self.reserve = settings.home, settings.reserve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        began = False

        async def send_with_headers(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        problem = self._refusal(scope, headers)
        if problem is None and _is_upload(scope, headers):
            problem = await run_in_threadpool(self._lacks_space, _length_of(headers))
        if problem is None and scope["method"] not in _SAFE and scope["path"] != "/login":
            missing = await run_in_threadpool(scope["app"].state.runoff.presence.problem)
            problem = Unavailable(missing) if missing else None
        if problem is None:
            try:
                await self.app(scope, self._limited(scope, headers, receive), send_with_headers)
                return
            except Exception as error:
                if began:  # too late for a response; the server closes the connection
                    raise
                problem = as_problem(error)
        await answer_problem(scope, problem)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        host = headers.get("host", "").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if not self.any_host and name not in self.hosts:
            message = _("This server does not accept the host name {name}. Add it to RUNOFF_ALLOWED_HOSTS.")
            return Problem(message.format(name=name[:100]), status=421)
        if scope["method"] not in _SAFE and not _same_origin(headers, host):
            return Problem(_("This request came from another site, so it was refused."), status=403)
        open_path = scope["path"] in _OPEN_PATHS or scope["path"].startswith("/static/")
        if self.token and not open_path and not self._has_token(headers):
            return Problem(_("This server requires a token. Sign in, or send it as Authorization: Bearer."), status=401)
        is_too_large = _length_of(headers) > LARGEST_BODY and not _is_upload(scope, headers)
        return Problem(_too_large(), status=413) if is_too_large else None

    def _lacks_space(self, num_bytes: int) -> Problem | None:
        """The response to an upload that would not leave the reserve free; None if there is enough space."""
        try:
            room = Room.of(self.home, self.reserve)
        except OSError:
            return None  # the route says what is wrong
        return None if room.has_place_for(_COPIES * num_bytes) else InsufficientStorage(_no_space(room.free, num_bytes))

    def _limited(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """``receive`` with a limit on the size of the body, whatever its headers say.

        Raises ``HTTPException`` 413 or 507.
        """
        size = unseen = 0
        is_upload = _is_upload(scope, headers)

        async def receive_within_limit() -> Message:
            nonlocal size, unseen
            message = await receive()
            size += len(message.get("body", b""))
            unseen += len(message.get("body", b""))
            if not is_upload and size > LARGEST_BODY:
                raise HTTPException(413, _too_large())
            if is_upload and unseen > _LOOK_BYTES:
                unseen = 0
                problem = await run_in_threadpool(self._lacks_space, 0)
                if problem is not None:
                    raise HTTPException(problem.status, problem.detail)
            return message

        return receive_within_limit

    def _has_token(self, headers: Headers) -> bool:
        assert self.token is not None
        scheme, _space, bearer = headers.get("authorization", "").partition(" ")
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        cookie = cookies[COOKIE].value if COOKIE in cookies else ""
        given = bearer.strip() if scheme.lower() == "bearer" else cookie
        return hmac.compare_digest(given.encode(), self.token.encode())


def _length_of(headers: Headers) -> int:
    """The length of the body that the request states; 0 if it states none."""
    length = headers.get("content-length", "")
    return int(length[:18]) if length.isascii() and length.isdigit() else 0


def _is_upload(scope: Scope, headers: Headers) -> bool:
    return scope["path"] in _UPLOAD_PATHS and headers.get("content-type", "").startswith("multipart/")


def _too_large() -> str:
    return _("The request is larger than {limit} MB. Send less at once.").format(limit=LARGEST_BODY // 2**20)


def _no_space(free: int, num_bytes: int) -> str:
    if not num_bytes:
        return _("The disk is full, so the upload was refused. Free some space, then upload it again.")
    text = _("The disk has {free:,} MB left; this upload needs {needed:,} MB. Free some space, then upload it again.")
    return text.format(free=free // 10**6, needed=_COPIES * num_bytes // 10**6 + 1)


def _same_origin(headers: Headers, host: str) -> bool:
    """Whether a write comes from our own page or from a program (which sends neither header)."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == host
