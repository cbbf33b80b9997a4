"""Several generations at once, what changed, and arenas that have ended."""

import errno
import subprocess

import numpy as np
import pytest

import xemem
from conftest import CHUNK, Flux


@pytest.fixture
def kept(make_exporter, out, run_dir):
    """An arena of eight banks that keeps four generations; six are out."""
    flux = Flux(make_exporter(banks=8))
    command = [out / "enclavectl", "snap", "retain", "snap/flux", "4"]
    subprocess.run(command, check=True, capture_output=True)
    for _ in range(6):
        flux.publish()
    return flux


def test_generations_say_step_and_time(kept, attach):
    stream = attach()
    assert stream.generations()[0][:3] == (3, 30, 1.5)
    assert [one.generation for one in stream.generations()] == [3, 4, 5, 6]
    held = stream.at(4)
    assert [one.leased for one in stream.generations()] == [False, True, False, False]
    assert stream.generations()[1].published_at == held.published_at


def test_readers_compare_generations_side_by_side(kept, attach):
    stream = attach()
    old, new = stream.at(3), stream.at(6)
    assert (old["flux"] == Flux.values(3)).all()
    assert (new["flux"] - old["flux"] == 3000.0).all()
    # By number or not, the stream goes on where it was.
    assert stream.next().generation == 6
    kept.publish()
    latest = stream.next()
    assert latest.generation == 7
    # Nobody but the reader ends what it has asked for by number.
    assert not old.released and (old["flux"] == Flux.values(3)).all()
    assert sorted(kept.exporter.leased()) == [3, 6, 7]
    old.release()
    del new
    assert kept.exporter.leased() == [7]


def test_what_is_not_there_is_not_found(kept, attach):
    stream = attach()
    for generation in (0, 2, 7):
        with pytest.raises(xemem.NotFound) as raised:
            stream.at(generation)
        assert raised.value.errno == errno.ENOENT
    with pytest.raises(xemem.NotFound):
        stream.diff(3, 7)
    for nonsense in (-1, "three", None):
        with pytest.raises((OverflowError, TypeError)):
            stream.at(nonsense)


def test_what_changed_is_told_without_comparing(kept, attach):
    stream = attach()
    # The flux lies in the chunk behind the first.
    assert stream.diff(3, 6) == stream.diff(6, 3) == [(CHUNK, CHUNK)]
    assert stream.diff(5, 5) == []
    kept.exporter.write(7 * CHUNK, np.arange(4.0))
    kept.exporter.write(8 * CHUNK, np.arange(4.0))
    kept.publish()
    assert stream.diff(6, 7) == [(CHUNK, CHUNK), (7 * CHUNK, 2 * CHUNK)]
    snap = stream.at(7)
    assert snap.diff(3) == stream.diff(3, 7)
    snap.release()
    with pytest.raises(xemem.Released):
        snap.diff(3)


def test_what_is_forgotten_is_an_error_and_never_a_guess(kept, attach):
    stream = attach()
    held = stream.at(5)
    for _ in range(200):
        kept.publish()
    assert held.diff(3) == [(CHUNK, CHUNK)]
    with pytest.raises(xemem.Forgotten) as raised:
        stream.diff(20, 60)
    assert raised.value.errno == errno.ENODATA
    assert isinstance(raised.value, LookupError)


def test_closing_keeps_arrays_of_chosen_generations(kept, attach):
    stream = attach()
    array = stream.at(4)["flux"]
    stream.close()
    assert kept.exporter.leased() == []
    assert (array == Flux.values(4)).all()
    for ask in (stream.generations, lambda: stream.at(4), lambda: stream.diff(4, 5)):
        with pytest.raises(xemem.Released):
            ask()


def test_an_arena_that_has_ended_is_read_by_name_and_by_number(kept, attach, make_exporter):
    segid = attach().segid
    kept.exporter.end()
    late = attach(timeout=0)
    assert [snap.generation for snap in late] == [6]
    assert late.end_reason == "closed by its program"
    assert (late.at(3)["flux"] == Flux.values(3)).all()
    # The name is the next run's then; the old one has its number.
    kept.exporter.stop()
    again = Flux(make_exporter(banks=4))
    again.publish()
    assert attach().next().generation == 1
    assert attach(f"snap/flux@{segid}", timeout=0).next().generation == 6
