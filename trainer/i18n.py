"""Translation of visible strings, for both packages. Pages and messages call ``_``; tables of text mark theirs with ``N_``."""

from __future__ import annotations

import gettext as _gettext
from contextvars import ContextVar

_ENGLISH = _gettext.NullTranslations()
translations: ContextVar[_gettext.NullTranslations] = ContextVar("translations", default=_ENGLISH)


def _(message: str) -> str:
    """Return ``message`` in the language of the current request (English when none is set)."""
    return translations.get().gettext(message)


def ngettext(singular: str, plural: str, n: int) -> str:
    """Return the form of the message that fits the number ``n``."""
    return translations.get().ngettext(singular, plural, n)


def N_(message: str) -> str:
    """Mark a string for extraction; it is translated where it is shown."""
    return message
