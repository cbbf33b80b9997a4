"""A simulation in an enclave, read from here and by every example at once."""

import json
import math
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

import xemem
from test_arrays import mapping_of

ROOT = pathlib.Path(__file__).parents[3]
EXAMPLES = ROOT / "xemem-host/python/examples"
DECK = ROOT / "guests/snap-mini/inputs/demo.inp"
ARENA = "snap/flux"
STEPS = 20
#: Longest time for anything that should happen at once.
SOON = 90


def run(command, **arguments):
    """Runs to the end and returns the standard output."""
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=SOON, **arguments
    )
    assert ended.returncode == 0, f"{command}: {ended.stderr}"
    return ended.stdout


def start(*command):
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_all():
    """What this process sees of the simulation, step by step."""
    steps = []
    before = None
    with xemem.attach(ARENA, policy="every", timeout=SOON) as stream:
        for snap in stream:
            flux = snap["flux"]
            steps.append(
                types.SimpleNamespace(
                    step=snap.step,
                    stored=(int(snap["step"]), float(snap["time"])),
                    time=snap.time,
                    layout=(flux.dtype.str, flux.shape, flux.strides),
                    writeable=flux.flags.writeable,
                    mapping=mapping_of(flux.ctypes.data)[0],
                    mean=float(flux.mean()),
                    before=None if before is None else float(before.mean()),
                    attrs=snap.attrs["flux"],
                    valid=snap.valid(),
                )
            )
            before = flux
    return steps, stream, flux


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    """One run of snap-mini with seven readers, and what each of them said."""
    out = pathlib.Path(os.environ["XASM_OUT"])
    home = tmp_path_factory.mktemp("enclave")
    with pytest.MonkeyPatch.context() as patch:
        (home / "run").mkdir(mode=0o700)
        (home / "data").mkdir()
        (home / "data/demo.inp").write_text(DECK.read_text())
        patch.setenv("ENCLAVE_RUNDIR", str(home / "run"))
        patch.setenv("PATH", str(out), prepend=os.pathsep)
        patch.setenv("MPLCONFIGDIR", str(home / "matplotlib"))
        for name in ("XEMEM_SOCKET", "ENCLAVE_KERNEL", "DISPLAY", "WAYLAND_DISPLAY"):
            patch.delenv(name, raising=False)
        ctl = str(out / "enclavectl")
        create = [ctl, "create", "py", "--cores", "1", "--share-cores"]
        create += ["--mem", "256M", "--export", f"{home / 'data'}=/data"]
        run(create)
        readers = {}
        try:
            python = sys.executable
            wait = ["--timeout", SOON]
            readers = {
                "rust": start(out / "spectrum", ARENA, "--json", *wait),
                "spectrum": start(
                    python, EXAMPLES / "spectrum.py", ARENA, "--json", *wait
                ),
                "view": start(
                    python,
                    EXAMPLES / "live_view.py",
                    ARENA,
                    "--at",
                    "group=0",
                    "--output",
                    home / "png",
                    *wait,
                ),
                "xarray": start(
                    python, EXAMPLES / "xarray_steps.py", ARENA, "--steps", 6, *wait
                ),
                "hdf5": start(
                    python,
                    EXAMPLES / "to_hdf5.py",
                    ARENA,
                    home / "flux.h5",
                    "--every",
                    5,
                    *wait,
                ),
                "adios2": start(
                    python,
                    EXAMPLES / "to_adios2.py",
                    ARENA,
                    home / "flux.bp",
                    "--every",
                    5,
                    *wait,
                ),
            }
            program = start(
                ctl, "run", "py", "--", out / "snap-mini",
                "--input", "/data/demo.inp", "--banks", "8", "--json-summary",
            )  # fmt: skip
            readers["program"] = program
            steps, stream, last = read_all()
            said = {
                name: reader.communicate(timeout=SOON)
                for name, reader in readers.items()
            }
        finally:
            for reader in readers.values():
                reader.kill()
                reader.wait()
            run([ctl, "destroy", "py", "--ignore-missing"])
            run([ctl, "broker", "stop", "--force"])
    codes = {name: reader.returncode for name, reader in readers.items()}
    return types.SimpleNamespace(
        home=home, steps=steps, stream=stream, last=last, said=said, codes=codes
    )


def lines(text):
    """The JSON objects among the lines."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_everybody_ended_well(simulation):
    assert simulation.codes == dict.fromkeys(simulation.codes, 0), simulation.said
    assert simulation.stream.end_reason == "closed by its program"
    [summary] = lines(simulation.said["program"][0])[-1:]
    assert summary["steps"] == STEPS
    # Whatever was published has been seen, and the rest is accounted for.
    assert summary["published"] + summary["dropped"] == STEPS
    seen = len(simulation.steps) + simulation.stream.missed
    assert 0 < len(simulation.steps) and seen <= summary["published"]


def test_arrays_are_the_enclaves_memory(simulation):
    for step in simulation.steps:
        assert step.mapping == "r--s"
        assert step.layout == ("<f8", (16, 16, 16, 8), (8, 128, 2048, 32768))
        assert not step.writeable and step.valid
        assert step.stored == (step.step, step.time)
        assert step.attrs["axes"] == ("x", "y", "z", "group")
        assert step.attrs["unit"] == "cm-2 s-1"


def test_the_array_of_the_step_before_stays_what_it_was(simulation):
    for before, step in zip(simulation.steps, simulation.steps[1:]):
        assert step.before == before.mean
    assert float(simulation.last.mean()) == simulation.steps[-1].mean


def test_the_spectrum_is_that_of_the_rust_program(simulation):
    rust, ours = (
        {line["step"]: line for line in lines(simulation.said[name][0]) if "step" in line}
        for name in ("rust", "spectrum")
    )
    shared = rust.keys() & ours.keys()
    assert len(shared) >= STEPS // 2
    for step in shared:
        # To the last bit: both add in the order of memory.
        assert ours[step]["spectrum"] == rust[step]["spectrum"]
        assert ours[step]["peak_group"] == rust[step]["peak_group"]
    for line in ours.values():
        assert line["checksum_ok"] and line["spectrum_ok"] and line["valid"]


def test_the_view_saves_a_picture_of_each_step(simulation):
    from matplotlib import image

    shown = simulation.said["view"][0].count("shown")
    pictures = sorted((simulation.home / "png").glob("flux-*.png"))
    assert len(pictures) == shown > 0
    first, last = image.imread(pictures[0]), image.imread(pictures[-1])
    assert first.shape == last.shape == (480, 640, 4)
    assert len(pictures) == 1 or (first != last).any()
    # The slice itself is not one colour.
    assert np.unique(last[100:380, 150:450].reshape(-1, 4), axis=0).shape[0] > 20


def test_xarray_and_dask_compute_over_the_steps(simulation):
    table = [line.split() for line in simulation.said["xarray"][0].splitlines()]
    assert table[0] == ["step", "time", "mean", "max", "change"]
    rows = table[1:-1]
    assert len(rows) == 6
    ours = {step.step: step for step in simulation.steps}
    for row in rows:
        if int(row[0]) in ours:
            mean = ours[int(row[0])].mean
            assert math.isclose(float(row[2]), mean, rel_tol=1e-6)
    assert table[-1][0] == str(6 * 16**3 * 8 * 8)


def test_hdf5_holds_the_selected_steps(simulation):
    import h5py

    ours = {step.step: step for step in simulation.steps}
    with h5py.File(simulation.home / "flux.h5") as file:
        names = list(file["steps"])
        assert names and all(int(name) % 5 == 0 for name in names)
        for group in file["steps"].values():
            flux = group["flux"]
            assert flux.shape == (8, 16, 16, 16)
            assert [dim.label for dim in flux.dims] == ["group", "z", "y", "x"]
            assert flux.attrs["units"] == "cm-2 s-1"
            assert int(group["step"][()]) == group.attrs["step"]
            if group.attrs["step"] in ours:
                mean = ours[group.attrs["step"]].mean
                assert math.isclose(flux[()].mean(), mean, rel_tol=1e-12)


def test_adios2_holds_the_selected_steps(simulation):
    import adios2

    ours = {step.step: step for step in simulation.steps}
    written = int(simulation.said["adios2"][0].split()[0])
    seen = []
    with adios2.Stream(str(simulation.home / "flux.bp"), "r") as stream:
        for at in stream.steps():
            step = int(at.read("xasm/step"))
            seen.append(step)
            flux = at.read("flux")
            assert flux.shape == (8, 16, 16, 16) and flux.dtype == np.float64
            assert at.read_attribute("units", "flux") == "cm-2 s-1"
            assert at.read_attribute("axes", "flux") == ["group", "z", "y", "x"]
            # What the simulation itself stored in the arena, and what was added.
            assert int(at.read("step")) == step and at.read("xasm/valid") == 1
            assert float(at.read("time")) == float(at.read("xasm/time"))
            if step in ours:
                assert math.isclose(flux.mean(), ours[step].mean, rel_tol=1e-12)
    assert len(seen) == written > 0 and all(step % 5 == 0 for step in seen)
