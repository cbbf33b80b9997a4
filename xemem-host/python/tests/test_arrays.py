"""Arrays are views of the mapping, exactly as described, and read-only."""

import numpy as np
import pytest

import xemem
from conftest import CHUNK, SIZE, variable


def mapping_of(address):
    """Flags and name of the mapping that holds `address`."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            words = line.split(maxsplit=5)
            start, end = (int(word, 16) for word in words[0].split("-"))
            if start <= address < end:
                return words[1], words[5].strip() if len(words) > 5 else ""
    raise AssertionError(f"nothing is mapped at {address:#x}")


def test_an_array_is_a_view_of_the_mapping(flux, attach):
    flux.publish()
    snap = attach().next()
    array = snap["flux"]
    flags, name = mapping_of(array.ctypes.data)
    assert flags == "r--s"
    assert "memfd:" in name
    # Chunk 1 of the arena is where the variable was put.
    assert array.ctypes.data % CHUNK == 0
    assert snap["flux"].ctypes.data == array.ctypes.data


def test_type_shape_and_order_are_the_producers(flux, attach):
    flux.publish()
    array = attach().next()["flux"]
    assert array.dtype == np.dtype("<f8")
    assert array.shape == (16, 8, 4)
    assert array.strides == (8, 128, 1024)
    assert array.flags.f_contiguous and not array.flags.c_contiguous
    np.testing.assert_array_equal(array, flux.values(1))


def test_nobody_can_write(flux, attach):
    flux.publish()
    array = attach().next()["flux"]
    assert not array.flags.writeable and not array.flags.owndata
    with pytest.raises(ValueError):
        array[0, 0, 0] = 1
    with pytest.raises(ValueError):
        array.flags.writeable = True
    with pytest.raises(ValueError):
        array[1:, ::2].flags.writeable = True
    assert memoryview(array).readonly
