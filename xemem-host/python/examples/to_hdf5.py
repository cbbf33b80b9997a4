"""Selected steps to an HDF5 file, for whoever needs the data off the node.

Writes a group `/steps/NNNNNN` for every `--every`-th step, with a dataset for
each variable. The bytes go from the simulation's memory to the file as they
lie; HDF5 knows C order only, so the axes of Fortran arrays are written in
reverse, and named. A step that turns out not to be whole is not kept.

    python to_hdf5.py snap/flux flux.h5 --every 5 --var flux cell_volume
"""

import argparse
import sys

import h5py

import xemem


def write(group, name, values, variable):
    """One variable as a dataset with unit and axes."""
    axes = list(variable.axes)
    if values.ndim > 1 and values.flags.f_contiguous:
        values, axes = values.T, axes[::-1]
    dataset = group.create_dataset(name, data=values)
    if variable.unit:
        dataset.attrs["units"] = variable.unit
    for number, label in enumerate(axes):
        dataset.dims[number].label = label


def write_step(file, snap, names):
    """One snapshot as a group; False if it was not whole."""
    path = f"steps/{snap.step:06}"
    group = file.create_group(path)
    for name in names or snap:
        write(group, name, snap[name], snap.variables[name])
    group.attrs["step"] = snap.step
    group.attrs["time"] = snap.time
    group.attrs["generation"] = snap.generation
    if snap.valid():
        return True
    del file[path]
    return False


def main():
    parser = argparse.ArgumentParser(description="Selected steps to HDF5.")
    parser.add_argument("name", help="name of the arena")
    parser.add_argument("file", help="HDF5 file, which must not exist")
    parser.add_argument("--var", nargs="*", help="variables [all]")
    parser.add_argument("--every", type=int, default=1, metavar="N")
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS")
    arguments = parser.parse_args()

    written = 0
    with h5py.File(arguments.file, "x", track_order=True) as file:
        file.attrs["arena"] = arguments.name
        with xemem.attach(
            arguments.name, policy="every", timeout=arguments.timeout
        ) as stream:
            for snap in stream:
                if snap.step % arguments.every:
                    continue
                if write_step(file, snap, arguments.var):
                    written += 1
                else:
                    print(f"step {snap.step} was not whole", file=sys.stderr)
    print(f"{written} steps in {arguments.file}, {stream.missed} missed")


if __name__ == "__main__":
    try:
        main()
    except xemem.Error as error:
        sys.exit(f"to_hdf5.py: {error}")
