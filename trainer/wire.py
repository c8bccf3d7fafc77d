"""What the server and the trainer host must agree on: where the socket is, the code's version, and the messages.

A connection begins with the host's greeting; then one JSON object a line each way: requests as below, answered by
``{"id", "result"}`` or ``{"id", "error": {"kind", "message"}}``. Imports neither torch nor numpy.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter

PROTOCOL = 1
MAX_LINE = 16 * 2**20  # bytes; an image to predict is the longest thing that is sent
LONGEST_SOCKET_PATH = 107  # bytes; sun_path of Linux without its closing zero


class Start(BaseModel):
    """Train a run in its own process. The response is sent when that process holds the run's lock."""

    model_config = ConfigDict(strict=True)
    command: Literal["start"] = "start"
    id: int = 0
    folder: Annotated[Path, Field(strict=False)]
    attempt: PositiveInt
    num_threads: PositiveInt
    device: str | None = None  # what ``auto`` means for this run, such as the GPU of its slot


class Describe(BaseModel):
    """Layers and parameters of a config for images of a shape (channels, height, width)."""

    model_config = ConfigDict(strict=True)
    command: Literal["describe"] = "describe"
    id: int = 0
    config: dict[str, Any]
    image_shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    num_classes: PositiveInt


class Devices(BaseModel):
    """What this machine can compute on."""

    model_config = ConfigDict(strict=True)
    command: Literal["devices"] = "devices"
    id: int = 0


class Predict(BaseModel):
    """Predict one image (PNG, base64) with the checkpoint of an epoch."""

    model_config = ConfigDict(strict=True)
    command: Literal["predict"] = "predict"
    id: int = 0
    folder: Annotated[Path, Field(strict=False)]
    epoch: PositiveInt
    image: Base64Bytes

    @classmethod
    def from_bytes(cls, folder: Path, epoch: int, image: bytes) -> Predict:
        """The request about the bytes of an image file."""
        return cls(folder=folder, epoch=epoch, image=base64.b64encode(image))


class Measure(BaseModel):
    """Measure what ``key`` of a section of ``trainer.measurements`` names, and record it. The response is the entry.

    For ``matmul`` the config names the precision. Ended with the error "interrupted" when a run is started.
    """

    model_config = ConfigDict(strict=True)
    command: Literal["measure"] = "measure"
    id: int = 0
    section: Literal["precision", "matmul"]
    key: str
    config: dict[str, Any]
    image_shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    num_classes: PositiveInt
    num_threads: PositiveInt
    device: str  # cpu, cuda:N or mps


class End(BaseModel):
    """Exit now unless runs are active. The response is ``{"ending"}``."""

    model_config = ConfigDict(strict=True)
    command: Literal["end"] = "end"
    id: int = 0


Request = Start | Describe | Devices | Predict | Measure | End
_requests: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="command")])


def parse_request(line: bytes) -> Request:
    """The request in a line. Raises ``ValueError`` (pydantic's) for anything else."""
    return _requests.validate_json(line)


def encode(message: dict[str, Any]) -> bytes:
    """A message as one line."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def error(kind: str, message: str) -> dict[str, Any]:
    """The part of a response that describes an error."""
    return {"error": {"kind": kind, "message": message}}


def code_version() -> str:
    """8 hex digits over the sources of this package, read now: equal on both sides means the same code."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        source = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:8]


def lock_path(home: Path, version: str) -> Path:
    """The file that the one host of this home and version keeps locked."""
    return home / f"host-{version}.lock"


def log_path(home: Path) -> Path:
    """What hosts print."""
    return home / "host.log"


def socket_path(home: Path, version: str) -> Path:
    """Where the host listens: in ``home``, or in a private temporary folder where that path would be too long."""
    name = f"host-{version}.sock"
    folder = f"runoff-{os.geteuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
    temporary = os.environ.get("TMPDIR", "")  # not from tempfile, whose folder runoff serve sets to HOME/uploads
    for path in (home / name, Path(temporary if os.path.isdir(temporary) else "/tmp", folder, name)):
        if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
            return path
    return Path("/tmp", folder, name)


def check_socket_folder(home: Path, path: Path) -> None:
    """Make the socket's folder where it isn't ``home``. Raises ``PermissionError`` if others could get at it."""
    folder = path.parent
    if folder == home:
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a private folder of this user. Remove it.")


def peer_is_this_user(connection: socket.socket) -> bool:
    """Whether the other end runs as this user; true where the system can't tell and file permissions must do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid == os.geteuid()
