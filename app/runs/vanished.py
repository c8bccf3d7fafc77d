"""The error of a run whose process ended unexpectedly: how it ended, and what to do.

A process ended unexpectedly if its log has no event that ends the attempt. The error code is ``ProcessVanished``.
"""

from __future__ import annotations

import signal
from typing import Any

from trainer.i18n import _


def vanished_error(ending: dict[str, Any], count: int) -> dict[str, str]:
    """The error of a run after ``count`` attempts in a row that ended unexpectedly without a new epoch.

    ``ending`` is the content of ``exit-N.json`` of the last attempt, or empty if there is none.
    """
    message = _("{count} attempts in a row ended without a new epoch; the last process {how}.")
    memory = ending.get("memory") or {}
    sentences = [message.format(count=count, how=_how(ending)), _memory_words(memory)]
    return {
        "error": "ProcessVanished",
        "message": " ".join(filter(None, sentences)),
        "advice": _advice(ending, memory),
    }


def _how(ending: dict[str, Any]) -> str:
    """How the process ended, as the end of a sentence that begins with "the last process"."""
    number = ending.get("signal")
    if number:
        return _("was ended by {name} (signal {signal})").format(name=_signal_name(number), signal=number)
    if "code" in ending:
        return _("exited with code {code}").format(code=ending["code"])
    return _("ended unexpectedly")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return _("an unknown signal")


def _memory_words(memory: dict[str, Any]) -> str:
    """How much memory the process used at most, and how much was free when it started; empty if that is not known."""
    if not {"peak_bytes", "total_bytes", "available_bytes_before"} <= memory.keys():
        return ""
    text = _("It used at most {peak} GB; of the machine's {total} GB, {free} GB were free when it started.")
    return text.format(
        peak=f"{memory['peak_bytes'] / 1e9:.1f}",
        total=f"{memory['total_bytes'] / 1e9:.1f}",
        free=f"{memory['available_bytes_before'] / 1e9:.1f}",
    )


def _advice(ending: dict[str, Any], memory: dict[str, Any]) -> str:
    kills = memory.get("oom_kills", 0) - memory.get("oom_kills_before", memory.get("oom_kills", 0))
    if kills > 0 and ending.get("signal") == signal.SIGKILL:
        return _("Memory ran out meanwhile: use a smaller batch size or width. Or free some memory, then resume.")
    if ending.get("signal") == signal.SIGKILL and "oom_kills_before" in memory:
        return _(
            "Memory did not run out, so a person or a program ended it. Resume it to continue from its last epoch."
        )
    return _("Resume it to continue from its last epoch. The log may have the details.")
