"""Errors of data sets, with messages for users."""

from __future__ import annotations


class DatasetError(ValueError):
    """A data set could not be made, read or removed: ``message`` says what and why, ``advice`` what to do."""

    def __init__(self, message: str, advice: str = "") -> None:
        self.message = message
        self.advice = advice
        super().__init__(f"{message} {advice}".strip())


class DiskFull(DatasetError):
    """The disk is full. ``needed`` is how many bytes must be free for another try, 0 if unknown."""

    def __init__(self, message: str, advice: str = "", *, needed: int = 0) -> None:
        super().__init__(message, advice)
        self.needed = needed


class Interrupted(DatasetError):
    """The child process was asked to end, for example together with its server. It leaves nothing behind."""


class DatasetDamaged(DatasetError):
    """The files of a data set are not those that were written when it was made."""


class UnknownDataset(ValueError):
    """No data set has this name."""
