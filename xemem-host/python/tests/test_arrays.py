"""Arrays are views of the mapping, exactly as described, and read-only."""

import json
import subprocess

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


def test_every_type_that_numpy_has_arrives(make_exporter, attach):
    exporter = make_exporter()
    types = "i1 u1 <i2 <u2 <i4 <u4 <i8 <u8 <f2 <f4 <f8 <c8 <c16".split()
    arrays = {name: np.arange(12, dtype=name).reshape(3, 4) for name in types}
    table = []
    for number, (name, array) in enumerate(arrays.items()):
        exporter.write(number * 512, array)
        table.append(variable(f"types/{name}", array, number * 512))
    exporter.describe(*table)
    exporter.publish()
    snap = attach().next()
    assert len(snap) == len(types) and list(snap) == snap.keys()
    for name, array in arrays.items():
        got = snap[f"types/{name}"]
        assert got.dtype == array.dtype and got.strides == array.strides
        np.testing.assert_array_equal(got, array)


def test_shapes_holes_lanes_and_scalars(make_exporter, attach):
    exporter = make_exporter()
    base = np.arange(64, dtype="<f4")
    exporter.write(0, base)
    holes = base.reshape(8, 8)[::2, 1::3]
    exporter.describe(
        variable("holes", holes, 4, nbytes=6 * 32 + 6 * 4 + 4),
        variable("scalar", base[5], 20, order="C"),
        variable("vector", base[0:1], 0, lanes=3, shape=(5,), strides=(12,), nbytes=60),
        variable("same", base[0:1], 28, shape=(4,), strides=(0,), nbytes=4),
        variable("odd", base[0:1], 2, shape=(3,), strides=(4,), nbytes=12),
    )
    exporter.publish()
    snap = attach().next()
    np.testing.assert_array_equal(snap["holes"], holes)
    assert snap["holes"].strides == (64, 12)
    assert snap["scalar"].shape == () and float(snap["scalar"]) == 5
    np.testing.assert_array_equal(snap["vector"], base[:15].reshape(5, 3))
    assert snap.variables["vector"].shape == (5, 3)
    np.testing.assert_array_equal(snap["same"], [7, 7, 7, 7])
    assert not snap["odd"].flags.aligned
    np.testing.assert_array_equal(
        snap["odd"], np.frombuffer(base.tobytes()[2:14], dtype="<f4")
    )


LIES = {
    "outside": {"shape": (SIZE,)},
    "beyond its bytes": {"nbytes": 7},
    "backwards": {"strides": (-8,)},
    "too many dimensions": {"ndim": 9},
    "no such type": {"code": 77},
    "no such width": {"bits": 7},
    "no such order": {"order": "X"},
    "nothing": {"shape": (0,)},
    "endless": {"strides": (2**62,), "shape": (2**62,)},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_lies_about_a_variable_hurt_only_that_variable(make_exporter, attach, lie):
    exporter = make_exporter()
    honest = np.arange(4.0)
    exporter.write(64, honest)
    exporter.describe(
        variable("lie", honest, 64, **lie), variable("honest", honest, 64)
    )
    exporter.publish()
    snap = attach().next()
    assert list(snap) == ["honest"]
    assert "lie" not in snap and "honest" in snap and 7 not in snap
    with pytest.raises(xemem.NoVariable, match="described wrongly"):
        snap["lie"]
    np.testing.assert_array_equal(snap["honest"], honest)


def test_a_table_that_changes_is_that_of_the_snapshot(flux, attach):
    flux.publish()
    snap = attach().next()
    flux.exporter.describe(variable("flux", np.zeros(1), 0))
    assert snap["flux"].shape == (16, 8, 4)
    flux.exporter.describe(variable("other", np.zeros(1), 0))
    assert list(snap) == ["flux"]
    assert snap.variables["flux"].shape == (16, 8, 4)


def test_types_that_numpy_lacks_are_type_errors(make_exporter, attach):
    exporter = make_exporter()
    exporter.describe(variable("wide", np.zeros(2, "<i8"), 0, bits=128, shape=(1,)))
    exporter.publish()
    stream = attach()
    snap = stream.next()
    with pytest.raises(TypeError, match="numpy has no type for elements of code 0 with 128"):
        snap["wide"]
    assert snap.variables["wide"].dtype is None
    # The refused array holds nothing.
    snap.release()


def test_an_unknown_name_is_a_key_error(flux, attach):
    flux.publish()
    snap = attach().next()
    with pytest.raises(KeyError, match="no variable \"nix\"") as raised:
        snap["nix"]
    assert isinstance(raised.value, xemem.Error)
    with pytest.raises(TypeError):
        snap[0]


def test_asarray_shares_the_memory(flux, attach):
    flux.publish()
    array = attach().next()["flux"]
    assert np.asarray(array).ctypes.data == array.ctypes.data


def test_dlpack_shares_the_memory_and_keeps_the_lease(flux, attach):
    flux.publish()
    stream = attach()
    array = stream.next()["flux"]
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        # DLPack could not say "read-only" then, so numpy exports no such array.
        with pytest.raises(BufferError, match="readonly"):
            np.from_dlpack(array)
        return
    address = array.ctypes.data
    shared = np.from_dlpack(array)
    assert shared.ctypes.data == address and shared.strides == array.strides
    assert not shared.flags.writeable
    # A capsule nobody took yet keeps the lease as well.
    capsule = array.__dlpack__(max_version=(1, 0))
    del array, shared
    with pytest.raises(xemem.Timeout):
        stream.next(timeout=0)
    assert flux.exporter.leased() == [1]
    del capsule
    assert flux.exporter.leased() == []


def test_attributes_are_the_producers(flux, attach):
    flux.publish()
    snap = attach().next()
    assert snap.attrs == {
        "flux": {
            "unit": "cm-2 s-1",
            "axes": ("x", "y", "group"),
            "order": "F",
            "role": "element",
        }
    }
    described = snap.variables["flux"]
    assert (described.offset, described.nbytes) == (CHUNK, 16 * 8 * 4 * 8)
    assert (snap.nbytes, snap.runs) == (SIZE, 1)


def test_copies_are_the_users_own(flux, attach):
    flux.publish()
    stream = attach()
    copies = stream.next().copy()
    assert copies["flux"].flags.writeable and copies["flux"].flags.f_contiguous
    flux.publish()
    assert flux.exporter.leased() == []
    np.testing.assert_array_equal(copies["flux"], flux.values(1))
    assert stream.next().copy("flux").keys() == {"flux"}


def test_xarray_shows_the_same_memory(make_exporter, attach):
    exporter = make_exporter()
    flux, time = np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array(0.25)
    exporter.write(0, flux)
    exporter.write(64, time)
    exporter.describe(
        variable("flux", flux, 0, unit="cm-2 s-1", axes="x,y"),
        variable("time", time, 64, order="C", unit="s"),
        variable("square", np.zeros((2, 2)), 128, axes="x,x"),
        variable("bare", np.zeros((5, 2)), 256),
    )
    exporter.publish()
    snap = attach().next()
    dataset = snap.to_xarray()
    assert dataset["flux"].dims == ("x", "y")
    assert dataset["flux"].values.ctypes.data == snap["flux"].ctypes.data
    assert dataset["flux"].attrs == {"units": "cm-2 s-1", "role": "data"}
    assert float(dataset.coords["time"]) == 0.25
    assert int(dataset.coords["step"]) == snap.step
    assert dataset["square"].dims == ("x", "square_x_1")
    assert dataset["bare"].dims == ("bare_0", "bare_1")
    assert dataset.attrs["generation"] == 1
    assert list(snap.to_xarray("flux").data_vars) == ["flux"]


def test_schemas_are_those_of_enclavectl(flux, attach, out, run_dir):
    stream = attach()
    assert stream.schema()["variables"][0]["name"] == "flux"
    flux.publish()
    snap = stream.next()
    for form in ("json", "conduit"):
        command = [out / "enclavectl", "snap", "schema", "snap/flux", "--format", form]
        printed = subprocess.run(command, check=True, capture_output=True).stdout
        assert json.loads(printed) == snap.schema(form)
    leaf = snap.schema("conduit")["flux"]
    assert leaf["dtype"] == "float64" and leaf["offset"] == CHUNK
    assert leaf["number_of_elements"] == 16 * 8 * 4
    assert snap.schema("conduit")["state"]["cycle"]["value"] == snap.step
    with pytest.raises(ValueError, match="yaml"):
        snap.schema("yaml")
    table = subprocess.run(
        [out / "enclavectl", "snap", "schema", "snap/flux"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert table[0].split()[:3] == ["NAME", "DTYPE", "SHAPE"]
    assert table[1].split()[:3] == ["flux", "float64", "16,8,4"]
