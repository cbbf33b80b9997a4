"""Snapshots of running simulations as numpy arrays, without a copy.

    import xemem

    with xemem.attach("snap/flux", policy="latest", timeout=30) as stream:
        for snap in stream:             # ends with the stream
            flux = snap["flux"]         # read-only view of the snapshot
            print(snap.step, snap.time, flux.mean())

A simulation publishes *snapshots* of its *arena*; this process attaches the
arena by name and gets one :class:`Snapshot` after the other. An array taken
from a snapshot is a view of the memory the simulation wrote, with its type,
shape, strides and order.

How long an array is good
    As long as it lives. Nobody unmaps memory under an array, and no array
    ever shows another step. While an array of the newest step lives, that
    step keeps its *lease*: the simulation does not reuse its memory. A
    stream keeps the lease of one older step, so ``flux`` of the loop above
    costs nothing when the stream goes on; arrays of still older steps, and
    all arrays when the stream is closed, become private copies in place
    (``stream.counters["bytes_detached"]`` counts them).

How long a snapshot is good
    Until the stream goes on; then no further arrays can be taken from it
    (:class:`Released`). ``snap.release()`` gives it back at once and raises
    BufferError while arrays of it are in use, as ``mmap.close()`` does.

Several generations
    ``stream.generations()`` lists what is kept, ``stream.at(generation)`` gives
    one of them, with arrays that can be taken until it is released, and
    ``stream.diff(a, b)`` the byte ranges that changed, without comparing
    memory. ``xemem.attach("name@5", ...)`` reads an earlier run.

Was it whole?
    ``snap.valid()``, asked after reading, says whether everything read so far
    is what was published. With an exporter that keeps the lease protocol it
    is always True.
"""

from ._native import Snapshot, Stream, Variable, attach
from ._store import Generation
from .errors import (
    BrokerGone,
    Error,
    Forgotten,
    NotFound,
    NoVariable,
    PermissionDenied,
    Released,
    Timeout,
    TooFragmented,
)

__all__ = [
    "BrokerGone",
    "Error",
    "Forgotten",
    "Generation",
    "NoVariable",
    "NotFound",
    "PermissionDenied",
    "Released",
    "Snapshot",
    "Stream",
    "Timeout",
    "TooFragmented",
    "Variable",
    "attach",
]
