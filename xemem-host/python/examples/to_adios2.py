"""Selected steps to ADIOS2: a BP file, or any other engine of ADIOS2.

Each `--every`-th step becomes a step of ADIOS2, with a variable for each of the
arena's, its unit and axes as attributes, and `xasm/step`, `xasm/time`,
`xasm/generation`. The bytes go from the simulation's memory into ADIOS2's buffer
as they lie; ADIOS2 for Python knows C order only, so the axes of Fortran arrays
are written in reverse. What a step holds is whole if its `xasm/valid` is 1: a step
that was begun cannot be taken back.

    python to_adios2.py snap/flux flux.bp --every 5 --var flux cell_volume

With `--engine SST` readers on other nodes follow the steps as they come.
"""

import argparse
import os
import sys

import adios2
import numpy as np

import xemem


def define(stream, name, values, axes, variable):
    """An array variable of ADIOS2, with unit and axes."""
    shape = list(values.shape)
    start = [0] * values.ndim
    # Only the type of the contents counts here, and they must not be read-only.
    sample = np.empty(1, values.dtype)
    defined = stream.io.define_variable(name, sample, shape, start, shape)
    if variable.unit:
        stream.write_attribute("units", variable.unit, name)
    if any(axes):
        stream.write_attribute("axes", axes, name)
    return defined


def write(stream, name, values, variable):
    """One variable of this step."""
    axes = list(variable.axes)
    if values.ndim > 1 and values.flags.f_contiguous:
        values, axes = values.T, axes[::-1]
    values = np.require(values, requirements="C")
    target = stream.inquire_variable(name)
    target = target or define(stream, name, values, axes, variable)
    # By address: ADIOS2 takes no array that is read-only, and would not write to it.
    stream.engine.impl.Put(target.impl, values.ctypes.data, adios2.bindings.Mode.Sync)


def write_step(stream, snap, names):
    """One snapshot as a step; False if it was not whole."""
    stream.begin_step()
    for name in names or snap:
        write(stream, name, snap[name], snap.variables[name])
    stream.write("xasm/step", snap.step)
    stream.write("xasm/time", snap.time)
    stream.write("xasm/generation", snap.generation)
    valid = snap.valid()
    stream.write("xasm/valid", int(valid))
    stream.end_step()
    return valid


def main():
    parser = argparse.ArgumentParser(description="Selected steps to ADIOS2.")
    parser.add_argument("name", help="name of the arena")
    parser.add_argument("file", help="file, or name of the stream")
    parser.add_argument("--engine", default="BPFile", help="engine of ADIOS2 [BPFile]")
    parser.add_argument("--var", nargs="*", help="variables [all]")
    parser.add_argument("--every", type=int, default=1, metavar="N")
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS")
    arguments = parser.parse_args()
    if arguments.engine.startswith("BP") and os.path.exists(arguments.file):
        sys.exit(f"to_adios2.py: {arguments.file} exists")

    written = 0
    io = adios2.Adios().declare_io("xemem")
    io.set_engine(arguments.engine)
    with adios2.Stream(io, arguments.file, "w") as output:
        with xemem.attach(
            arguments.name, policy="every", timeout=arguments.timeout
        ) as stream:
            for snap in stream:
                if snap.step % arguments.every:
                    continue
                if write_step(output, snap, arguments.var):
                    written += 1
                else:
                    print(f"step {snap.step} was not whole", file=sys.stderr)
    print(f"{written} steps in {arguments.file}, {stream.missed} missed")


if __name__ == "__main__":
    try:
        main()
    except xemem.Error as error:
        sys.exit(f"to_adios2.py: {error}")
