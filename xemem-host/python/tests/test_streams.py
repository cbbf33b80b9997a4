"""Attaching, waiting, missing, ending, failing."""

import errno
import os
import pickle
import signal
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import xemem
from conftest import FIGURES


def test_latest_skips_and_counts(flux, attach):
    stream = attach()
    flux.publish()
    assert stream.next().generation == 1
    for _ in range(4):
        flux.publish()
    snap = stream.next()
    assert (snap.generation, snap.step, snap.time) == (5, 50, 2.5)
    assert stream.missed == 3
    assert stream.counters["steps"] == 2
    assert stream.end_reason is None


def test_every_misses_nothing_that_was_kept(flux, attach):
    stream = attach(policy="every")
    for _ in range(2):
        flux.publish()
    assert [stream.next().generation for _ in range(2)] == [1, 2]
    assert stream.missed == 0


def test_the_end_is_not_an_error(flux, attach):
    flux.publish()
    stream = attach()
    flux.exporter.end()
    assert [snap.generation for snap in stream] == [1]
    assert stream.next() is None
    assert stream.end_reason == "closed by its program"


def test_a_dead_exporter_ends_the_stream(flux, attach):
    flux.publish()
    stream = attach()
    flux.exporter.stop()
    assert [snap.generation for snap in stream] == [1]
    assert stream.end_reason == "its enclave is gone"


def test_a_step_that_does_not_come_is_a_timeout(flux, attach):
    stream = attach(timeout=0.05)
    with pytest.raises(TimeoutError, match="no snapshot of \"snap/flux\" within 0.05 s"):
        next(iter(stream))
    with pytest.raises(xemem.Timeout) as raised:
        stream.next(timeout=0)
    assert raised.value.errno == errno.ETIMEDOUT
    flux.publish()
    assert stream.next().generation == 1


def test_a_name_that_does_not_come_is_a_timeout(broker):
    with pytest.raises(xemem.Timeout) as raised:
        xemem.attach("no/such", timeout=0.3)
    assert raised.value.errno == errno.ETIMEDOUT
    assert isinstance(raised.value, xemem.Error)
    # The broker's own words.
    assert raised.value.strerror == "no segment of this name came in time"
    assert raised.value.filename == "no/such"
    with pytest.raises(FileNotFoundError) as raised:
        xemem.attach("no/such", timeout=0)
    assert raised.value.errno == errno.ENOENT


def test_a_name_may_come_late(broker, make_exporter):
    streams = []
    waiter = threading.Thread(
        target=lambda: streams.append(xemem.attach("snap/late", timeout=30))
    )
    waiter.start()
    make_exporter(name="snap/late")
    waiter.join()
    assert streams[0].name == "snap/late"


def test_without_a_broker_attach_says_where_it_looked(run_dir, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(xemem.BrokerGone, match="xemem.sock") as raised:
        xemem.attach("snap/flux", timeout=0.05)
    assert isinstance(raised.value, ConnectionError)
    assert raised.value.errno == errno.ENOENT
    with pytest.raises(xemem.BrokerGone, match="/nonexistent/socket"):
        xemem.attach("snap/flux", timeout=0, socket="/nonexistent/socket")


def test_a_reader_may_come_before_the_broker(out, run_dir, monkeypatch):
    monkeypatch.setenv("PATH", str(out))
    with pytest.raises(xemem.Timeout):
        xemem.attach("snap/flux", timeout=0.3)
    assert (run_dir / "xemem.sock").exists()
    subprocess.run([out / "enclavectl", "broker", "stop"], check=True, capture_output=True)


@pytest.mark.parametrize(
    "arguments",
    [{"policy": "newest"}, {"timeout": -1}, {"timeout": float("nan")}],
)
def test_nonsense_is_a_value_error(broker, arguments):
    with pytest.raises(ValueError):
        xemem.attach("snap/flux", **arguments)


@pytest.mark.parametrize("name", ["", "x" * 64, "a\nb"])
def test_names_that_cannot_be_are_refused(broker, name):
    with pytest.raises(xemem.Error) as raised:
        xemem.attach(name, timeout=0)
    assert raised.value.errno == errno.EINVAL


def test_what_cannot_be_sent_is_not_pickled(flux, attach):
    flux.publish()
    stream = attach()
    snap = stream.next()
    with pytest.raises(TypeError, match="cannot be pickled.*connection"):
        pickle.dumps(stream)
    with pytest.raises(TypeError, match="cannot be pickled.*memory of this machine"):
        pickle.dumps(snap)
    copied = pickle.loads(pickle.dumps(snap["flux"]))
    np.testing.assert_array_equal(copied, flux.values(1))


def test_a_forked_child_reads_but_does_not_ask(flux, attach):
    flux.publish()
    stream = attach()
    snap = stream.next()
    array = snap["flux"]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            np.testing.assert_array_equal(array, flux.values(1))
            try:
                stream.next()
            except xemem.Error as error:
                status = 0 if error.errno == errno.ESTALE else 2
            del array, snap, stream
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # The child gave nothing back.
    assert flux.exporter.leased() == [1]
    flux.publish()
    assert stream.next().generation == 2


def interrupted(code):
    """Runs `code`, sends it Ctrl-C once it says so, returns how it ended."""
    # A test run in the background of a shell has Ctrl-C switched off.
    code = (
        "import signal, xemem\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n" + code
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "waiting\n"
    sent = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=30)
    return child.returncode, stderr, time.monotonic() - sent


@pytest.mark.parametrize(
    "wait",
    [
        "stream = xemem.attach('snap/flux', timeout=None)\n"
        "print('waiting', flush=True)\n"
        "stream.next()",
        "print('waiting', flush=True)\n"
        "xemem.attach('no/such', timeout=None)",
    ],
    ids=["for a step", "for a name"],
)
def test_ctrl_c_ends_a_wait(flux, wait):
    code, stderr, seconds = interrupted(wait)
    assert "KeyboardInterrupt" in stderr
    assert code == -signal.SIGINT
    assert seconds < 10


def test_a_waiting_thread_does_not_stop_the_others(flux, attach):
    stream = attach()
    waiter = threading.Thread(target=stream.next)
    waiter.start()
    # Python code runs on, and questions are answered.
    assert stream.missed == 0
    assert sum(range(100_000)) == 4999950000
    flux.publish()
    waiter.join()
    assert stream.counters["steps"] == 1


def test_things_say_what_they_are(flux, attach):
    flux.publish()
    stream = attach()
    snap = stream.next()
    assert repr(stream) == '<xemem.Stream of "snap/flux", 1 steps, 0 missed>'
    assert repr(snap) == (
        '<xemem.Snapshot of "snap/flux" step 10 time 0.5 generation 1 with 1 variables>'
    )
    assert repr(snap.variables["flux"]) == (
        '<xemem.Variable "flux" <f8 (16, 8, 4) order F unit "cm-2 s-1">'
    )


def test_a_step_costs_microseconds_and_no_mapping(flux, attach):
    stream = attach()
    to_next, to_array = [], []
    for _ in range(500):
        flux.publish()
        start = time.perf_counter()
        snap = stream.next()
        between = time.perf_counter()
        array = snap["flux"]
        end = time.perf_counter()
        to_next.append(between - start)
        to_array.append(end - between)
    assert array.shape == (16, 8, 4)
    next_us, array_us = (statistics.median(t) * 1e6 for t in (to_next, to_array))
    FIGURES.append(
        f"loop overhead per step: next {next_us:.1f} us, array {array_us:.1f} us "
        "(medians of 500, one of 64 chunks changes)"
    )
    assert next_us + array_us < 10_000
    # The two views that take turns each find the chunk where it was.
    counters = stream.counters
    assert counters["steps"] == 500 and counters["bytes_detached"] == 0
    assert counters["chunks_mapped"] + counters["chunks_reused"] == 500 * 64
    assert counters["runs_mapped"] < 500
