"""Why a run failed, in words: exceptions of the engine that carry advice, and sentences for those that do not.

Here is the only place that turns an exception into a ``failed`` event.
"""

from __future__ import annotations

import errno

import torch

from trainer.config import ConfigError
from trainer.events import Failed
from trainer.files import is_full
from trainer.i18n import _


class RunError(Exception):
    """A failure that was foreseen: ``message`` says what happened and why, ``advice`` what to do."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.message, self.advice = message, advice


class NonFiniteLoss(RunError):
    """The loss became NaN or infinite."""


class DeviceMissing(RunError):
    """The device asked for is not in this machine."""


class PrecisionUnsupported(RunError):
    """The device can't calculate in the precision asked for."""


class DatasetChanged(RunError):
    """The images are not those that the run began with."""


class DatasetMissing(RunError):
    """The images are not in the cache."""


def describe(error: BaseException) -> Failed:
    """The event for an exception; its error class is the exception's, or a plainer name for what many kinds can mean."""
    message, advice = getattr(error, "message", None), getattr(error, "advice", None)
    if isinstance(message, str) and isinstance(advice, str):
        return Failed(type(error).__name__, message, advice)
    if isinstance(error, ConfigError):
        return Failed("ConfigError", str(error), _("Start a new run with that field changed."))
    if isinstance(error, torch.OutOfMemoryError):
        return Failed(
            "OutOfMemory",
            _("The GPU does not have enough free memory for this run."),
            _("Choose a smaller batch size or width, or stop other programs that use the GPU, then start it again."),
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return Failed(
            "OutOfMemory",
            _("The machine does not have enough free memory for this run."),
            _("Choose a smaller batch size or width, or train fewer runs at a time, then start it again."),
        )
    if is_full(error):
        return Failed(
            "DiskFull",
            _("The disk is full, so the epoch could not be saved."),
            _("Free some space, then resume: the run continues from its last checkpoint."),
        )
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EROFS):
        return Failed(
            "DiskError",
            _("The disk reported an error: {reason}.").format(reason=error.strerror),
            _("Check the disk, then resume: the run continues from its last checkpoint."),
        )
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return Failed(type(error).__name__, text[:500], _("See the log."))
