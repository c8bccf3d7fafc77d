"""The executor for this machine. It sends requests to the trainer host over a socket, and starts a host if there is none.

One connection stays open: it keeps the host from exiting, and shows when the host has ended. Each call opens a separate
connection, so calls from several threads do not wait for each other and a late response can't reach the wrong call. This
module never imports torch.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.runs.executors import ExecutorUnavailable, Interrupted, Refused, RunNotStarted
from app.runs.presence import Check, unchecked
from trainer import wire
from trainer.i18n import _
from trainer.interpreter import python_command
from trainer.lock_holder import end_holder
from trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)
GREETING_SECONDS = 1.0
UNANSWERED_SECONDS = 5.0  # a host that does not greet within it hangs
START_SECONDS = 10.0
QUERY_SECONDS = 5.0
MEASURE_SECONDS = 130.0
LARGEST_IMAGE = 10 * 10**6  # bytes
STEADY_SECONDS = 60.0  # a host that ran for so long resets the count of hosts that ended early
LONGEST_PAUSE_SECONDS = 60.0  # between the end of a host and the start of the next
_LARGEST_LOG = 2**20  # bytes; a host.log above this size is overwritten by the next host


class LocalExecutor:
    """Starts runs on this machine, through the host of the folder ``home`` that runs this version of the code.

    ``command`` replaces ``python -m trainer.host`` as the command that starts a host. No host is started
    while ``home_problem`` returns a sentence.
    """

    def __init__(self, home: Path, *, command: list[str] | None = None, home_problem: Check = unchecked) -> None:
        self._home = home.resolve()
        self._home_problem = home_problem
        self._command = command or python_command("trainer.host")
        self._lock = threading.Lock()
        self._kept: socket.socket | None = None  # the connection that stays open
        self._calls: set[socket.socket] = set()  # connections that wait for a response
        self._greeted_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._num_deaths = 0
        self._retry_at = 0.0
        self._devices: list[dict[str, Any]] | None = None

    # The host ------------------------------------------------------------------------------------------------------

    def ensure_host(self) -> None:
        """Connect to the host, or start one if there is none, without waiting until it is ready.

        After hosts that ended soon after their start there is a pause before the next one. During this pause it raises
        ``ExecutorUnavailable`` with the last line of the host's log.
        """
        with self._lock:
            if self._is_connected():
                return
            version = wire.code_version()
            if self._connect(version) or self._is_starting(version):
                return
            if time.monotonic() < self._retry_at:
                raise ExecutorUnavailable(self._why_it_died())
            self._start_host()

    def ready(self) -> bool:
        """Whether the host has sent its greeting and is still connected."""
        with self._lock:
            return self._is_connected() or self._connect(wire.code_version())

    def _is_connected(self) -> bool:
        """Whether the connection to the host is open. If the host has closed it, this counts as an end of the host."""
        if self._kept is None:
            return False
        try:
            is_open = self._kept.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            is_open = True
        except OSError:
            is_open = False
        if not is_open:
            self._kept.close()
            self._kept = None
            self._note_death(time.monotonic() - self._greeted_at)
        return is_open

    def _connect(self, version: str) -> bool:
        path = wire.socket_path(self._home, version)
        try:
            self._kept = _open(self._home, path, version, time.monotonic() + GREETING_SECONDS)
        except (OSError, ValueError):
            return False
        self._kept.setblocking(False)
        self._path, self._version = path, version
        self._greeted_at = time.monotonic()
        self._process = None
        return True

    def _is_starting(self, version: str) -> bool:
        """Whether a host is starting, from this server or another. Counts a host that ended before its greeting."""
        if self._process is not None:
            if self._process.poll() is None:
                return True
            died = self._process.returncode != 0  # 0: it found that there already is a host
            self._process = None
            if died:
                self._note_death(None)
        try:
            with wire.lock_path(self._home, version).open("rb+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def _note_death(self, lived_seconds: float | None) -> None:
        """Set the pause before the next start: 1, 2, 4, ... seconds, longer with each host that ended early.

        ``lived_seconds`` counts from the greeting, None if there was none. There is no pause after the first end of a host
        that had sent its greeting.
        """
        if lived_seconds is not None and lived_seconds >= STEADY_SECONDS:
            self._num_deaths = 0
        self._num_deaths += 1
        pause = min(LONGEST_PAUSE_SECONDS, 2.0 ** (self._num_deaths - 1))
        if lived_seconds is not None and self._num_deaths == 1:
            pause = 0.0
        self._retry_at = time.monotonic() + pause

    def _why_it_died(self) -> str:
        path = wire.log_path(self._home)
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        reason = next((line.strip() for line in reversed(lines) if line.strip()), _("it printed nothing"))
        return _("The trainer ended immediately: {reason}. It will be restarted soon; see {path}.").format(
            reason=reason[:200].rstrip("."), path=path
        )

    def _replace_host(self) -> None:
        """Kill a host that does not send its greeting, such as a stopped process. Its runs continue."""
        with self._lock:
            logger.warning("The trainer host does not answer, so it is replaced.")
            end_holder(wire.lock_path(self._home, self._version))
            if self._kept is not None:
                self._kept.close()
                self._kept = None

    def _start_host(self) -> None:
        if missing := self._home_problem():
            raise ExecutorUnavailable(missing)
        path = wire.log_path(self._home)
        environment = {name: value for name, value in os.environ.items() if name != "RUNOFF_TOKEN"}
        try:
            mode = "wb" if path.exists() and path.stat().st_size > _LARGEST_LOG else "ab"
            with path.open(mode) as log:
                self._process = subprocess.Popen(
                    [*self._command, "--home", str(self._home)],
                    env=environment,
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
        except OSError as problem:
            raise ExecutorUnavailable(
                _("The trainer could not be started: {reason}.").format(reason=problem)
            ) from problem
        threading.Thread(target=self._process.wait, name="trainer host", daemon=True).start()  # leaves no zombie

    # Calls ---------------------------------------------------------------------------------------------------------

    def start(self, folder: RunFolder, attempt: int, num_threads: int, device: str | None = None) -> None:
        """Start a run and return when its process holds the lock. For a run that is already running, return at once.

        ``device`` is the device for a run whose configuration says ``auto``, such as the GPU of its slot. Raises
        ``RunNotStarted`` if the process ends before it holds the lock, and ``ExecutorUnavailable``.
        """
        path = folder.path.resolve()
        request = wire.Start(folder=path, attempt=attempt, num_threads=num_threads, device=device)
        self._call(request, START_SECONDS)

    def force_stop(self, folder: RunFolder, attempt: int) -> bool:
        """Kill the process that holds the run's lock; whether the lock is free. ``attempt`` is the one that runs."""
        return end_holder(folder.lock_path)

    def describe(self, config: dict[str, Any], image_shape: list[int], num_classes: int) -> dict[str, Any]:
        """Layers, parameters and multiply-adds of a config, as ``trainer.host.describe.describe`` returns them.

        ``image_shape`` is [channels, height, width]. Raises ``Refused`` for an invalid config, and
        ``ExecutorUnavailable``.
        """
        request = wire.Describe(config=config, image_shape=image_shape, num_classes=num_classes)
        result: dict[str, Any] = self._call(request, QUERY_SECONDS)
        return result

    def devices(self) -> list[dict[str, Any]]:
        """The devices that runs can use, the CPU first, with the memory that is free now. Raises ``ExecutorUnavailable``."""
        devices: list[dict[str, Any]] = self._call(wire.Devices(), QUERY_SECONDS)
        self._devices = devices
        return list(devices)

    def known_devices(self) -> list[dict[str, Any]]:
        """The last result of ``devices``, without a new request; empty if there is none yet."""
        return list(self._devices or [])

    def predict(self, folder: RunFolder, epoch: int, image_png: bytes) -> dict[str, Any]:
        """Predict one image with the checkpoint of ``epoch``. Raises ``ExecutorUnavailable`` or ``Refused``."""
        if len(image_png) > LARGEST_IMAGE:
            raise Refused(_("The image is too large. Choose one below 10 MB."))
        request = wire.Predict.from_bytes(folder.path.resolve(), epoch, image_png)
        result: dict[str, Any] = self._call(request, QUERY_SECONDS)
        return result

    def measure(self, request: wire.Measure) -> dict[str, Any]:
        """Make a measurement, record it and return the entry. Takes up to two minutes.

        Raises ``Interrupted`` if a run is active or starts, ``Refused`` for what can't be measured on this machine, and
        ``ExecutorUnavailable``.
        """
        result: dict[str, Any] = self._call(request, MEASURE_SECONDS)
        return result

    def end_host(self, patience_seconds: float = 15.0) -> bool:
        """Ask the host to exit now instead of after its idle minute. It refuses while runs are active.

        Returns whether there is no host any more, after waiting at most ``patience_seconds`` for that.
        """
        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline:
            if self.ready():
                ending = self._call(wire.End(), QUERY_SECONDS)["ending"]
                self.close()
                if not ending:
                    return False
            else:
                with self._lock:
                    if not self._is_starting(wire.code_version()):
                        return True
            time.sleep(0.05)
        return False

    def close(self) -> None:
        """Close all connections. Runs continue, and the host exits a minute after the last run and connection."""
        with self._lock:
            for call in self._calls:
                with suppress(OSError):
                    call.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it; that thread closes it
            if self._kept is not None:
                self._kept.close()
                self._kept = None

    def _call(self, request: wire.Request, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        self.ensure_host()
        if not self.ready():
            raise ExecutorUnavailable(_("The trainer is starting; try again in a few seconds."))
        try:
            with self._connection(deadline) as connection:
                connection.settimeout(_left(deadline))
                connection.sendall(request.model_dump_json().encode() + b"\n")
                response = _read(connection, deadline)
        except TimeoutError as problem:
            raise ExecutorUnavailable(
                _("The trainer did not respond in time; try again in a few seconds.")
            ) from problem
        except (OSError, ValueError) as problem:
            message = _("The connection to the trainer was lost; try again in a few seconds.")
            raise ExecutorUnavailable(message) from problem
        if "error" in response:
            raise _problem(response["error"])
        return response["result"]

    @contextmanager
    def _connection(self, deadline: float) -> Iterator[socket.socket]:
        """A connection for one call. ``close`` interrupts it."""
        try:
            connection = _open(
                self._home, self._path, self._version, min(deadline, time.monotonic() + UNANSWERED_SECONDS)
            )
        except TimeoutError:
            self._replace_host()
            raise
        try:
            with self._lock:
                self._calls.add(connection)
            yield connection
        finally:
            with self._lock:
                self._calls.discard(connection)
                connection.close()


def _problem(error: dict[str, str]) -> Exception:
    kinds: dict[str, type[Exception]] = {
        "invalid": Refused,
        "not started": RunNotStarted,
        "interrupted": Interrupted,
    }
    return kinds.get(error["kind"], ExecutorUnavailable)(error["message"])


def _left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _read(connection: socket.socket, deadline: float) -> dict[str, Any]:
    """Read one message. Raises ``TimeoutError`` after the deadline, another ``OSError``, or ``ValueError``."""
    data = bytearray()
    while not data.endswith(b"\n"):
        connection.settimeout(_left(deadline))
        received = connection.recv(65_536)
        if not received:
            raise ConnectionResetError
        data += received
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


def _open(home: Path, path: Path, version: str, deadline: float) -> socket.socket:
    """Connect to the host at ``path`` and check its greeting. Raises ``OSError`` or ``ValueError``."""
    wire.check_socket_folder(home, path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_left(deadline))
        connection.connect(os.fspath(path))
        greeting = _read(connection, deadline)
        if not wire.peer_is_this_user(connection) or (greeting["protocol"], greeting["version"]) != (
            wire.PROTOCOL,
            version,
        ):
            raise ValueError("the socket belongs to another program or version")
    except BaseException:
        connection.close()
        raise
    return connection
