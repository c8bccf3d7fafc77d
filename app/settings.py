"""Settings from the environment (prefix ``RUNOFF_``), checked once."""

from __future__ import annotations

import ipaddress
import os
import secrets
from pathlib import Path

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from trainer.i18n import _


class SettingsError(ValueError):
    """A setting that can't be used; the message names the variable and says what to do."""


class Settings(BaseSettings):
    """What an operator chooses. Every field is the variable ``RUNOFF_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="RUNOFF_", env_ignore_empty=True, frozen=True)

    home: Path = Field(
        Path("~/.runoff"), description="Folder of the database, the runs, imported data sets and the token."
    )
    datasets: Path | None = Field(
        None, description="A torchvision root folder that is searched first and never written to."
    )
    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback needs a token.")
    port: int = Field(8000, ge=1, le=65_535, description="Port to listen on.")
    token: str | None = Field(None, description="Bearer token that every request must carry.")
    allowed_hosts: str = Field(
        "", description="Additional host names by which browsers reach the server, separated by commas."
    )
    slots: int | None = Field(
        None, ge=1, le=1024, description="How many runs may train at once; default: one per GPU, or one per CPU core."
    )
    hang_seconds: float | None = Field(
        None,
        gt=0,
        description="Kill a run that has given no sign of life for this many seconds; it resumes from its last completed epoch.",
    )
    reserve_mb: int = Field(
        500, ge=0, description="Megabytes of the disk to keep free: with less, no run starts, and uploads are refused."
    )
    measure: bool = Field(
        True, description="Measure, half a minute after the last run, which precision suits the nets that were trained."
    )

    @field_validator("home", "datasets")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.expanduser().resolve() if path else None

    @property
    def reserve(self) -> int:
        """Bytes of the disk that are kept free."""
        return self.reserve_mb * 10**6

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def database(self) -> Path:
        return self.home / "runoff.sqlite3"

    @property
    def token_path(self) -> Path:
        return self.home / "token"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def host_names(self) -> set[str]:
        """The names that a request's Host header may carry."""
        extra = {name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip()}
        return {"localhost", "127.0.0.1", "[::1]", self.host.lower(), *extra}

    def required_token(self) -> str | None:
        """The token in force: the given one, else one kept in HOME where others can reach the server, else none."""
        if self.token:
            return self.token
        return None if self.is_loopback else self.stored_token()

    def stored_token(self) -> str:
        """The token kept in HOME, made on first use, readable by its owner only."""
        token = self.token_path.read_text().strip() if self.token_path.exists() else ""
        if token:
            return token
        self.home.mkdir(parents=True, exist_ok=True)
        temporary = self.home / f".token.{secrets.token_hex(4)}.tmp"  # never a file without a whole token in it
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
        temporary.replace(self.token_path)
        return self.token_path.read_text().strip()


def load_settings(**overrides: object) -> Settings:
    """Read the environment. Raises ``SettingsError`` with one sentence that names the variable."""
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        item = error.errors()[0]
        name = f"RUNOFF_{str(item['loc'][0]).upper()}"
        raise SettingsError(
            _("{name} can't be used: {reason}. It is {value}.").format(
                name=name, reason=item["msg"], value=item["input"]
            )
        ) from None
