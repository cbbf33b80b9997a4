"""What can go wrong, as exceptions.

All derive from :class:`Error`, which is an ``OSError``: ``errno`` is the
reason as a number, ``strerror`` the reason in words, the broker's own where
the broker refused. Each also derives from the built-in exception that fits.
"""

__all__ = [
    "BrokerGone",
    "Error",
    "Forgotten",
    "NotFound",
    "NoVariable",
    "PermissionDenied",
    "Released",
    "Timeout",
    "TooFragmented",
]


class Error(OSError):
    """Anything that XEMEM refuses or cannot do."""


class Timeout(Error, TimeoutError):
    """Nothing came within the time given."""


class NotFound(Error, FileNotFoundError):
    """No segment has that name, or the arena no such generation (any more)."""


class Forgotten(Error, LookupError):
    """What changed between two generations is not known any more."""


class PermissionDenied(Error, PermissionError):
    """The exporter's permits do not allow it."""


class BrokerGone(Error, ConnectionError):
    """No broker listens, or it ended while it was needed."""


class TooFragmented(Error, MemoryError):
    """The snapshot lies in more pieces than a process may map."""


class Released(Error, ValueError):
    """The snapshot was given back, or its stream went on: take arrays sooner."""


class NoVariable(Error, KeyError):
    """The arena has no variable of that name, or describes it wrongly."""

    __str__ = OSError.__str__
