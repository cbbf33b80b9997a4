"""Arrays that outlive their snapshot, their stream, their broker: never
unmapped, never another step, never a lease that nobody needs."""

import gc
import threading

import numpy as np
import pytest

import xemem
from conftest import CHUNK, Flux
from test_arrays import mapping_of


def test_the_loop_of_the_documentation(flux, attach):
    stream = attach(policy="every")
    seen = []

    def produce():
        for _ in range(20):
            flux.publish()
            gate.acquire()
        flux.exporter.end()

    gate = threading.Semaphore(1)
    producer = threading.Thread(target=produce)
    producer.start()
    with stream:
        for snap in stream:
            array = snap["flux"]
            np.testing.assert_array_equal(array, flux.values(snap.generation))
            seen.append(snap.generation)
            gate.release()
    producer.join()
    assert seen == list(range(1, 21))
    assert stream.missed == 0
    assert stream.end_reason == "closed by its program"
    # The last array is still bound here, and good.
    np.testing.assert_array_equal(array, flux.values(20))


def test_the_array_of_the_step_before_is_not_copied(flux, attach):
    stream = attach()
    for _ in range(5):
        generation = flux.publish()
        # Still bound from the round before while the stream goes on.
        array = stream.next()["flux"]
        np.testing.assert_array_equal(array, flux.values(generation))
    assert stream.counters["bytes_detached"] == 0
    assert flux.exporter.leased() == [5]


def test_older_arrays_become_private_copies_in_place(flux, attach):
    stream = attach()
    arrays, addresses = [], []
    for _ in range(6):
        flux.publish()
        arrays.append(stream.next()["flux"])
        addresses.append(arrays[-1].ctypes.data)
    # The newest and the one before keep their leases, the others do not.
    assert flux.exporter.leased() == [5, 6]
    for number, (array, address) in enumerate(zip(arrays, addresses), start=1):
        assert array.ctypes.data == address
        np.testing.assert_array_equal(array, flux.values(number))
        assert not array.flags.writeable
        kind = "r--p" if number <= 4 else "r--s"
        assert mapping_of(address)[0] == kind, f"array {number}"
    assert stream.counters["bytes_detached"] == 4 * CHUNK


def test_an_arena_of_two_banks_is_not_stalled_by_the_loop(make_exporter, attach):
    flux = Flux(make_exporter(banks=2))
    stream = attach()
    for _ in range(5):
        generation = flux.publish()
        if generation > 1:
            np.testing.assert_array_equal(array, flux.values(generation - 1))
        snap = stream.next()
        array = snap["flux"]
        # What the loop does first when it goes on; nothing is there yet.
        with pytest.raises(xemem.Timeout):
            stream.next(timeout=0)
        assert flux.exporter.leased() == []


def test_the_lease_goes_back_with_the_last_array(flux, attach):
    flux.publish()
    stream = attach()
    snap = stream.next()
    view = snap["flux"][1:3, ::2].T
    other = snap["flux"]
    with pytest.raises(xemem.Timeout):
        stream.next(timeout=0)
    assert flux.exporter.leased() == [1]
    del other
    assert flux.exporter.leased() == [1]
    del view
    assert flux.exporter.leased() == []
    assert snap.released


def test_the_lease_goes_back_with_the_snapshot(flux, attach):
    flux.publish()
    stream = attach()
    snap = stream.next()
    snap["flux"]
    assert flux.exporter.leased() == [1]
    del snap
    gc.collect()
    assert flux.exporter.leased() == []


def test_release_is_refused_while_arrays_are_in_use(flux, attach):
    flux.publish()
    snap = attach().next()
    array = snap["flux"]
    with pytest.raises(BufferError, match="1 of its arrays are in use"):
        snap.release()
    np.testing.assert_array_equal(array, flux.values(1))
    del array
    snap.release()
    assert snap.released and not snap.valid()
    assert flux.exporter.leased() == []
    with pytest.raises(xemem.Released, match="step 10 has been given back"):
        snap["flux"]
    snap.release()


def test_a_snapshot_is_over_when_its_stream_goes_on(flux, attach):
    flux.publish()
    stream = attach()
    first = stream.next()
    flux.publish()
    second = stream.next()
    assert first.released and not second.released
    with pytest.raises(xemem.Released):
        first["flux"]
    assert flux.exporter.leased() == [2]


def test_a_with_block_lets_the_last_array_decide(flux, attach):
    flux.publish()
    with attach().next() as snap:
        array = snap["flux"]
    np.testing.assert_array_equal(array, flux.values(1))
    assert flux.exporter.leased() == [1]
    del array
    assert flux.exporter.leased() == []


def test_closing_keeps_arrays_and_gives_leases_back(flux, attach):
    flux.publish()
    stream = attach()
    array = stream.next()["flux"]
    stream.close()
    assert stream.closed
    assert flux.exporter.leased() == []
    for _ in range(4):
        flux.publish()
    np.testing.assert_array_equal(array, flux.values(1))
    assert stream.counters["bytes_detached"] == CHUNK
    with pytest.raises(xemem.Released, match="closed"):
        stream.next()
    stream.close()


def test_a_stream_that_is_gone_leaves_its_arrays_good(flux, attach, broker):
    flux.publish()
    stream = xemem.attach("snap/flux", timeout=30)
    array = stream.next()["flux"]
    del stream
    gc.collect()
    assert flux.exporter.leased() == [1]
    for _ in range(3):
        flux.publish()
    np.testing.assert_array_equal(array, flux.values(1))
    del array
    assert flux.exporter.leased() == []


def test_arrays_outlive_exporter_and_broker(flux, attach, broker):
    flux.publish()
    stream = attach()
    snap = stream.next()
    array = snap["flux"]
    flux.exporter.stop()
    broker.end()
    np.testing.assert_array_equal(array, flux.values(1))
    assert snap.valid()
    with pytest.raises(xemem.BrokerGone):
        stream.next()


def test_valid_tells_of_a_broken_lease(flux, attach):
    flux.publish()
    stream = attach()
    snap = stream.next()
    array = snap["flux"]
    assert snap.valid()
    flux.exporter.spoil(1, 1)
    assert not snap.valid()
    # A copy of what was spoilt is not called good either.
    stream.close()
    assert not snap.valid()
    assert array.shape == (16, 8, 4)


def test_arrays_may_die_on_any_thread(flux, attach):
    stream = attach()
    for _ in range(10):
        flux.publish()
        arrays = [stream.next()["flux"]]
        reader = threading.Thread(target=arrays.clear)
        reader.start()
        reader.join()
        assert flux.exporter.leased() == []


def test_an_array_can_die_while_another_thread_waits(flux, attach):
    flux.publish()
    stream = attach()
    arrays = [stream.next()["flux"]]
    got = []
    waiter = threading.Thread(target=lambda: got.append(stream.next()))
    waiter.start()
    arrays.clear()
    assert flux.exporter.leased() == []
    flux.publish()
    waiter.join()
    np.testing.assert_array_equal(got[0]["flux"], flux.values(2))


def test_unchanged_chunks_are_not_mapped_again(flux, attach):
    stream = attach()
    flux.publish()
    stream.next()
    assert stream.counters["runs_mapped"] == 1
    assert stream.counters["chunks_mapped"] == 64
    flux.publish()
    snap = stream.next()
    np.testing.assert_array_equal(snap["flux"], flux.values(2))
    assert stream.counters["runs_mapped"] == 2
    assert stream.counters["chunks_mapped"] == 65
    assert stream.counters["chunks_reused"] == 63
