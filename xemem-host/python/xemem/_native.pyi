"""Attached arenas and their snapshots; see the package for how to use them."""

from collections.abc import Iterator
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Optional, TypedDict, Union, final

import numpy as np

from ._store import Generation

class Attrs(TypedDict):
    """What an arena says about a variable beside its layout."""

    unit: str
    axes: tuple[str, ...]
    order: Literal["C", "F"]
    role: Literal["data", "coordinate", "element", "vertex", "other"]

class Counters(TypedDict):
    """What following an arena has cost so far."""

    steps: int
    """Snapshots given."""
    missed: int
    """Generations published since the first one seen that were never given."""
    runs_mapped: int
    """Pieces mapped, each a system call."""
    chunks_mapped: int
    """Chunks in those pieces."""
    chunks_reused: int
    """Chunks that were in place already and were not mapped again."""
    bytes_detached: int
    """Bytes copied to private memory for arrays that outlived their lease."""

def attach(
    name: str,
    *,
    policy: Literal["latest", "every"] = "latest",
    timeout: Optional[float] = 30.0,
    socket: Union[str, PathLike[str], None] = None,
) -> Stream:
    """Attaches the arena `name` and returns the stream of its snapshots.

    `policy` "latest" gives the newest snapshot each time and skips what came
    between; "every" gives each one that the simulation kept. `timeout`, in
    seconds, is how long to wait for the broker and the name, and later for
    each snapshot; None waits for ever, 0 not at all. `socket` is the broker's
    socket, by default `$XEMEM_SOCKET`, else that of the run directory
    (`$ENCLAVE_RUNDIR`, `/run/enclave`, …). If no broker runs and its program
    is on the PATH, it is started, so a reader may come before the simulation.

    Raises `Timeout` (with `timeout=0` `NotFound`), `PermissionDenied`,
    `BrokerGone`, or another `Error`; ValueError for nonsense.
    """

@final
class Stream:
    """An attached arena: an iterator over its snapshots.

    Asking for the next snapshot ends the one before: no further arrays can be
    taken from it. Arrays taken earlier stay good. A context manager, which
    closes; not to be pickled, nor used in a forked child.
    """

    @property
    def name(self) -> str:
        """Name it was attached by."""
    @property
    def segid(self) -> int:
        """The segment's number: `name@segid` is this arena for as long as
        there is one, whoever has the name by then."""
    @property
    def missed(self) -> int:
        """Generations published since the first one seen that were never given."""
    @property
    def end_reason(self) -> Optional[str]:
        """Why the stream ended, or None if it did not."""
    @property
    def closed(self) -> bool:
        """Whether it was closed."""
    @property
    def counters(self) -> Counters:
        """What following the arena has cost so far."""
    def schema(self, format: Literal["json", "conduit"] = "json") -> dict[str, Any]:
        """The variables as a dictionary; needs no snapshot.

        "json" lists the variable table, "conduit" is a Conduit schema over
        the arena's bytes. `enclavectl snap schema` prints the same.
        """
    def next(self, timeout: Optional[float] = None) -> Optional[Snapshot]:
        """The next snapshot, or None at the end of the stream.

        `timeout` in seconds; None stands for the stream's own. Raises
        `Timeout`, `BrokerGone`, `Released` once closed, `TooFragmented`.
        Ctrl-C ends the wait.
        """
    def generations(self) -> list[Generation]:
        """The generations that `at()` would find now, ascending."""
    def at(self, generation: int) -> Snapshot:
        """The snapshot of one generation, whatever was read before.

        It stays, with its lease and its bank of the arena, until it is
        released, deleted with its arrays, or the stream is closed; the stream
        goes on where it was. Raises `NotFound` if there is no such generation,
        or not any more.
        """
    def diff(self, a: int, b: int) -> list[tuple[int, int]]:
        """Offset and length of each byte range that changed between two
        generations, exact to a chunk, without comparing memory.

        Raises `NotFound` for a generation that there is not, `Forgotten` when
        what changed is not known any more: hold the later one, and ask
        `Snapshot.diff`.
        """
    def __iter__(self) -> Iterator[Snapshot]: ...
    def __next__(self) -> Snapshot: ...
    def close(self) -> None:
        """Detaches. Arrays that are in use become private copies in place."""
    def __enter__(self) -> Stream: ...
    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
        /,
    ) -> None: ...

@final
class Snapshot:
    """One published generation: a mapping from names to read-only arrays."""

    @property
    def step(self) -> int:
        """The producer's step."""
    @property
    def time(self) -> float:
        """The producer's time, in its own unit."""
    @property
    def generation(self) -> int:
        """Number of this publish, from 1."""
    @property
    def published_at(self) -> float:
        """When it was published, in seconds since 1970."""
    @property
    def chunks_copied(self) -> int:
        """Chunks that the producer's kernel copied since the publish before."""
    @property
    def publish_cycles(self) -> int:
        """Cycles that the producer spent in the publish."""
    @property
    def nbytes(self) -> int:
        """Bytes of the arena's payload."""
    @property
    def runs(self) -> int:
        """Mapped pieces it consists of."""
    @property
    def variables(self) -> dict[str, Variable]:
        """The variables by name. One that is described wrongly is left out."""
    @property
    def attrs(self) -> dict[str, Attrs]:
        """Unit, axes, order and role of every variable, by name."""
    @property
    def released(self) -> bool:
        """Whether its lease went back: no more arrays can be taken."""
    def valid(self) -> bool:
        """Whether what its arrays show is what was published.

        Ask after reading. False once released without arrays.
        """
    def diff(self, since: int) -> list[tuple[int, int]]:
        """As `Stream.diff`, from generation `since` to this one: its lease
        makes sure that the answer to an earlier one is known."""
    def release(self) -> None:
        """Gives the snapshot back; BufferError while arrays are in use."""
    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """The array of a variable: a read-only view of the snapshot's memory.

        Type, shape, strides and order are the producer's; elements of several
        lanes add a last axis. Raises `NoVariable` (a KeyError), `Released`,
        or TypeError for elements that numpy has no type for.
        """
    def __len__(self) -> int: ...
    def __contains__(self, name: object) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def keys(self) -> list[str]:
        """Names of the variables."""
    def schema(self, format: Literal["json", "conduit"] = "json") -> dict[str, Any]:
        """As `Stream.schema`, with step and time."""
    def copy(self, *names: str) -> dict[str, np.ndarray[Any, Any]]:
        """Private copies of all variables, or of those named, by name."""
    def to_xarray(self, *names: str) -> Any:
        """The snapshot, or the variables named, as an `xarray.Dataset`.

        It shows the same memory. Axis labels become dimensions, units the
        attribute `units`, step and time coordinates. Needs xarray.
        """
    def __enter__(self) -> Snapshot: ...
    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
        /,
    ) -> None: ...

@final
class Variable:
    """What an arena says about one of its variables."""

    @property
    def name(self) -> str:
        """Name, perhaps a path with slashes."""
    @property
    def dtype(self) -> Optional[str]:
        """Type of an element as numpy writes it; None if numpy has no such type."""
    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per dimension."""
    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes between neighbours per dimension."""
    @property
    def order(self) -> Literal["C", "F"]:
        """Order the producer names."""
    @property
    def offset(self) -> int:
        """Bytes from the arena's start."""
    @property
    def nbytes(self) -> int:
        """Bytes it covers."""
    @property
    def unit(self) -> str:
        """Unit, empty if the producer named none."""
    @property
    def axes(self) -> tuple[str, ...]:
        """Labels of the axes, first axis first; empty if there are none."""
    @property
    def role(self) -> Literal["data", "coordinate", "element", "vertex", "other"]:
        """What it is."""
    @property
    def attrs(self) -> Attrs:
        """Unit, axes, order and role."""
