"""What there is to be read by number."""

from typing import NamedTuple


class Generation(NamedTuple):
    """A generation that ``stream.at(generation)`` would find."""

    generation: int
    #: The producer's step.
    step: int
    #: The producer's time, in its own unit.
    time: float
    #: When it was published, in seconds since 1970.
    published_at: float
    #: Whether a reader holds it.
    leased: bool
