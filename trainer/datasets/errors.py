"""Errors of data sets, with messages for users."""

from __future__ import annotations


class DatasetError(ValueError):
    """A data set could not be made, read or removed: ``message`` says what and why, ``advice`` what to do."""

    def __init__(self, message: str, advice: str = "") -> None:
        self.message = message
        self.advice = advice
        super().__init__(f"{message} {advice}".strip())


class DiskFull(DatasetError):
    """The disk is full. ``needed`` bytes must be free before another try makes sense; 0 if that is not known."""

    def __init__(self, message: str, advice: str = "", *, needed: int = 0) -> None:
        super().__init__(message, advice)
        self.needed = needed


class Interrupted(DatasetError):
    """The process was asked to end, for example with its server, and left nothing behind."""


class DatasetDamaged(DatasetError):
    """The files of a data set are not those that were written when it was made."""


class UnknownDataset(ValueError):
    """No data set has this name."""
