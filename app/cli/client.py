"""A client of the REST API over httpx, for the command line and for scripts."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from app.settings import Settings
from trainer.i18n import _
from trainer.run_folder import is_locked, read_json

_RETRY_SECONDS = 1
_LONGEST_RETRY_SECONDS = 10


class ClientError(RuntimeError):
    """The server refused or could not be reached; the text is a sentence, ``errors`` name the fields."""

    def __init__(self, message: str, status: int = 0, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.errors = errors or []


class Client:
    """Calls of one server. Every method raises ``ClientError``."""

    def __init__(self, url: str, token: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url.rstrip("/")
        # trust_env off: a proxy has no business between the command line and its own server
        self._http = httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=60, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def is_up(self) -> bool:
        """Whether a server responds at the address."""
        try:
            return self._http.get(f"{self.url}/healthz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of the response; None if it is empty."""
        return self._call(lambda: self._http.request(method, path, **options))

    def _call_once(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST with an idempotency key. Sent again once if the connection is lost, or after a 503 with Retry-After."""

        def send() -> httpx.Response:
            return self._http.post(path, json=body, headers={"Idempotency-Key": key})

        def send_again() -> httpx.Response:
            try:
                answer = send()
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                time.sleep(_RETRY_SECONDS)
                return send()
            if answer.status_code != 503 or "retry-after" not in answer.headers:
                return answer
            given = answer.headers["retry-after"]
            time.sleep(min(int(given), _LONGEST_RETRY_SECONDS) if given.isdecimal() else _RETRY_SECONDS)
            return send()

        key = secrets.token_hex(16)
        return dict(self._call(send_again))

    def _call(self, send: Callable[[], httpx.Response]) -> Any:
        try:
            answer = send()
        except httpx.HTTPError as error:
            raise ClientError(
                _("The server at {url} does not respond ({reason}). Start it with runoff serve.").format(
                    url=self.url, reason=error or type(error).__name__
                )
            ) from error
        if answer.is_success:
            return answer.json() if answer.content else None
        try:
            body = answer.json()
        except ValueError:
            body = {}
        raise ClientError(body.get("detail") or answer.reason_phrase, answer.status_code, body.get("errors"))

    def start_run(self, **fields: Any) -> dict[str, Any]:
        """``POST /runs``."""
        return self._call_once("/runs", fields)

    def start_sweep(self, **fields: Any) -> dict[str, Any]:
        """``POST /sweeps``."""
        return self._call_once("/sweeps", fields)

    def run(self, run_id: str) -> dict[str, Any]:
        """``GET /runs/{id}``."""
        return dict(self.call("GET", f"/runs/{run_id}"))

    def runs(self, **filters: Any) -> dict[str, Any]:
        """``GET /runs``."""
        given = {name: value for name, value in filters.items() if value is not None}
        return dict(self.call("GET", "/runs", params=given))

    def compare(self, run_ids: list[str], **options: Any) -> dict[str, Any]:
        """``GET /compare``."""
        given = {name: value for name, value in options.items() if value is not None}
        return dict(self.call("GET", "/compare", params={"run": run_ids, **given}))

    def import_dataset(self, path: Path, name: str, size: int = 64) -> dict[str, Any]:
        """``POST /datasets`` with the archive at ``path``, streamed."""
        with path.open("rb") as file:
            form = {"name": name, "size": str(size)}
            return dict(self.call("POST", "/datasets", files={"file": (path.name, file)}, data=form, timeout=None))

    def events(self, run_id: str) -> Iterator[dict[str, Any]]:
        """The run's events as they happen, until its last one."""
        with self._http.stream("GET", f"/runs/{run_id}/events", timeout=httpx.Timeout(60, read=None)) as answer:
            if not answer.is_success:
                self.run(run_id)  # raises with the sentence
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))


def find_server(settings: Settings) -> Client | None:
    """A client of the server that runs on this HOME, or None where none does.

    The lock says so, not the note alone: after a kill another program may listen at the noted address.
    """
    noted = read_json(settings.home / "server.json")
    if noted is None or not is_locked(settings.home / "server.lock"):
        return None
    client = Client(str(noted["url"]), settings.required_token() or _stored_token(settings))
    if client.is_up():
        return client
    client.close()
    return None


def _stored_token(settings: Settings) -> str | None:
    return settings.stored_token() if settings.token_path.exists() else None
