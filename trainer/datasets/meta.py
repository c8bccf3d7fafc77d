"""The small files that describe cached images: one model for each, and what is wrong with a file that does not fit.

``meta.json`` lies beside the images, the note of a check and the note of a removed data set in hidden folders next to
it. Nothing of them is used that has not passed its model.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.files import Stamp

SCHEMA = 1
SPLITS = ("train", "test")
META = "meta.json"

Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]


def folder_of(home: Path, name: str) -> Path:
    """The folder of a finished cache."""
    return home / "datasets" / name


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What the file says. Raises ``OSError``, or ``ValueError`` where it does not fit the model."""
        return cls.model_validate_json(path.read_bytes(), strict=True)


class Meta(_File):
    """``meta.json``: what a data set is, and the fingerprints of its images."""

    title: str
    kind: Literal["torchvision", "built in", "imported"]
    source: str
    created_at: str | None
    unreadable: list[str]
    num_unreadable: Count
    num_ignored: Count
    image_shape: tuple[Literal[1, 3], Size, Size]
    class_names: list[str] = Field(min_length=1)
    train_fingerprint: Fingerprint
    test_fingerprint: Fingerprint
    num_train: Size
    num_test: Size
    train_counts: list[Count]
    test_counts: list[Count]
    mean: list[float]
    std: list[float]

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        for split in SPLITS:
            counts = self.counts(split)
            if len(counts) != len(self.class_names) or sum(counts) != self.num_images(split):
                raise ValueError(f"{split}_counts")
        if len(self.mean) != self.image_shape[0] or len(self.std) != self.image_shape[0]:
            raise ValueError("mean")
        return self

    def num_images(self, split: str) -> int:
        return self.num_train if split == "train" else self.num_test

    def counts(self, split: str) -> list[int]:
        return self.train_counts if split == "train" else self.test_counts

    def fingerprint(self, split: str) -> str:
        return self.train_fingerprint if split == "train" else self.test_fingerprint

    @property
    def fingerprints(self) -> tuple[str, str]:
        return self.train_fingerprint, self.test_fingerprint


class Removed(_File):
    """What is kept of a removed data set: its name stands for these images."""

    train_fingerprint: Fingerprint
    test_fingerprint: Fingerprint


class CheckedSplit(_File):
    """The fingerprint that was computed from the files of a split, and the one that ``meta.json`` promised then."""

    images: Stamp
    labels: Stamp
    started_ns: int  # when the check began to read
    found: Fingerprint
    promised: Fingerprint


class Checked(_File):
    """The note of the last check of a data set. Without it, the images are checked again."""

    train: CheckedSplit
    test: CheckedSplit


class NotMeta(ValueError):
    """``meta.json`` is not what this version writes; ``schema`` is set where another version wrote it."""

    def __init__(self, detail: str, schema: int | None = None) -> None:
        self.detail, self.schema = detail, schema
        super().__init__(detail)


def read_meta_file(path: Path) -> Meta:
    """The content of a ``meta.json``. Raises ``OSError`` or ``NotMeta``."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise NotMeta("JSON") from None
    if not isinstance(value, dict):
        raise NotMeta("JSON")
    schema = value.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise NotMeta(f"schema {schema}", schema)
    if schema != SCHEMA or ("crc" in value and value["crc"] != crc_of(value)):
        raise NotMeta("crc" if schema == SCHEMA else "schema")
    try:
        return Meta.model_validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise NotMeta(str(first["loc"][0]) if first["loc"] else str(first["ctx"]["error"])) from None
    except ValueError:
        raise NotMeta("JSON") from None


def crc_of(value: dict[str, Any]) -> str:
    """CRC-32 of all members but ``crc``: of their JSON in ASCII, with sorted keys and without spaces."""
    others = {key: member for key, member in value.items() if key != "crc"}
    return f"{zlib.crc32(json.dumps(others, sort_keys=True, separators=(',', ':')).encode()):08x}"
