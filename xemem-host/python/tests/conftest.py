"""Real brokers and real memory for the tests.

``$XASM_OUT`` names the folder that ``cargo xtask image`` fills and
``$XASM_TEST_EXPORTER`` the program of ``xemem-host/examples/exporter.rs``,
which plays a simulation with its kernel; ``cargo xtask wheel --test`` sets
both. Every test has a broker and directories of its own.
"""

import itertools
import os
import pathlib
import struct
import subprocess

import numpy as np
import pytest

import xemem

CHUNK = 4096
CHUNKS = 64
SIZE = CHUNK * CHUNKS
#: DLPack's codes of numpy's kinds.
CODES = {"i": 0, "u": 1, "f": 2, "c": 5}
ROLES = {"data": 0, "coordinate": 1, "element": 2, "vertex": 3}


def pytest_configure(config):
    for name in ("XASM_OUT", "XASM_TEST_EXPORTER"):
        if name not in os.environ:
            pytest.exit(f"{name} is not set; try: cargo xtask wheel --test", 2)


#: Lines that tests want to be seen at the end.
FIGURES = []


def pytest_terminal_summary(terminalreporter):
    for line in FIGURES:
        terminalreporter.write_line(line)


@pytest.fixture
def out():
    """The folder with the project's programs."""
    return pathlib.Path(os.environ["XASM_OUT"])


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """An empty run directory that everything of this test uses."""
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("ENCLAVE_RUNDIR", str(path))
    monkeypatch.delenv("XEMEM_SOCKET", raising=False)
    return path


class Broker:
    """A broker that serves until it is ended, with the keeper it is started by."""

    def __init__(self, program, socket):
        self.socket = socket
        command = [program, "--detach", "--socket", socket, "--linger-ms", "3600000"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout.read() == b"ready\n"
        self.process.stdout.close()

    def end(self):
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def broker(out, run_dir):
    broker = Broker(out / "xemem-broker", run_dir / "xemem.sock")
    yield broker
    broker.end()


def variable(name, array, offset, *, unit="", axes="", role="data", lanes=1, **changes):
    """The entry of the variable table for `array` at `offset`; `changes`
    replace fields, to tell lies."""
    fields = {
        "code": CODES[array.dtype.kind],
        "bits": array.dtype.itemsize * 8,
        "ndim": array.ndim,
        "shape": array.shape,
        "strides": array.strides,
        "order": "F" if array.flags.f_contiguous and array.ndim > 1 else "C",
        "nbytes": array.nbytes * lanes,
        **changes,
    }
    pad = lambda values: tuple(values) + (0,) * (8 - len(values))
    return struct.pack(
        "<120sBBHI8Q8qQQcB6x32s64s136x",
        name.encode(),
        fields["code"],
        fields["bits"],
        lanes,
        fields["ndim"],
        *pad(fields["shape"]),
        *pad(fields["strides"]),
        offset,
        fields["nbytes"],
        fields["order"].encode(),
        ROLES[role],
        unit.encode(),
        axes.encode(),
    )


class Exporter:
    """A process that publishes an arena of 64 chunks of 4 KiB."""

    def __init__(self, broker, name="snap/flux", banks=4):
        program = os.environ["XASM_TEST_EXPORTER"]
        self.name = name
        self.process = subprocess.Popen(
            [program, broker.socket, name, str(banks)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        answer = self.process.stdout.readline()
        assert answer, f"the exporter died of {command[:60]!r}"
        return answer.strip()

    def describe(self, *variables):
        self.ask("describe " + b"".join(variables).hex())

    def write(self, offset, array):
        data = array.tobytes("A")
        assert offset % 8 == 0
        data += bytes(-len(data) % 8)
        self.ask(f"write {offset} {data.hex()}")

    def publish(self):
        answer = self.ask("publish")
        return None if answer == "dropped" else int(answer)

    def leased(self):
        return [int(word) for word in self.ask("leased").split()]

    def spoil(self, chunk, generation):
        self.ask(f"spoil {chunk} {generation}")

    def end(self):
        self.ask("end")

    def stop(self):
        """Dies, as a simulation does that is killed."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def make_exporter(broker):
    """Makes exporters that end with the test."""
    made = []

    def make(**arguments):
        made.append(Exporter(broker, **arguments))
        return made[-1]

    yield make
    for exporter in made:
        exporter.stop()


class Flux:
    """An exporter whose only variable is a flux in Fortran order, another in
    every generation."""

    def __init__(self, exporter):
        self.exporter = exporter
        self.counter = itertools.count(1)
        exporter.describe(
            variable(
                "flux",
                self.values(0),
                CHUNK,
                unit="cm-2 s-1",
                axes="x,y,group",
                role="element",
            )
        )

    @staticmethod
    def values(generation):
        flux = np.arange(16 * 8 * 4, dtype="<f8") + 1000.0 * generation
        return flux.reshape((16, 8, 4), order="F")

    def publish(self):
        """Writes and publishes the next generation; says which it was."""
        generation = next(self.counter)
        self.exporter.write(CHUNK, self.values(generation))
        assert self.exporter.publish() == generation
        return generation


@pytest.fixture
def flux(make_exporter):
    return Flux(make_exporter())


@pytest.fixture
def attach(broker):
    """`xemem.attach` at this test's broker; streams are closed at the end."""
    streams = []

    def attach(name="snap/flux", **arguments):
        arguments.setdefault("timeout", 30)
        streams.append(xemem.attach(name, **arguments))
        return streams[-1]

    yield attach
    for stream in streams:
        stream.close()
