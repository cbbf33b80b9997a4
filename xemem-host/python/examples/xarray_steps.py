"""Several steps at once, with xarray and Dask.

Collects the first `--steps` snapshots, stacks them along a new dimension
`step` and lets Dask compute over all of them at once, a task for each step
and group. Nothing is copied by us: the newest steps are the simulation's
memory, older ones were made private by xemem when the simulation needed its
memory back (the last line says how much).

    python xarray_steps.py snap/flux --var flux --steps 10
"""

import argparse
import sys

import dask
import dask.array
import xarray

import xemem


def lazy(snap, name):
    """A variable of a snapshot whose values are a Dask array."""
    dataset = snap.to_xarray(name)
    values = dataset[name]
    # One chunk for each index of the last axis, whose memory is contiguous in
    # Fortran order. Named, so that Dask does not read all to make up a name.
    chunks = values.shape[:-1] + (1,)
    array = dask.array.from_array(
        values.values, chunks=chunks, name=f"{name}-{snap.generation}", asarray=False
    )
    return values.copy(data=array)


def collect(stream, name, count):
    """The variable in the next `count` steps, stacked."""
    steps = []
    for snap in stream:
        steps.append(lazy(snap, name))
        if len(steps) == count:
            break
    return xarray.concat(steps, dim="step", coords="different", compat="equals")


def main():
    parser = argparse.ArgumentParser(description="xarray and Dask over the steps.")
    parser.add_argument("name", help="name of the arena")
    parser.add_argument("--var", default="flux", help="variable [flux]")
    parser.add_argument("--steps", type=int, default=10, metavar="N")
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS")
    arguments = parser.parse_args()

    with xemem.attach(
        arguments.name, policy="every", timeout=arguments.timeout
    ) as stream:
        values = collect(stream, arguments.var, arguments.steps)
        space = [dim for dim in values.dims if dim != "step"]
        mean = values.mean(space)
        largest = values.max(space)
        # Largest change from one step to the next, relative to the largest value.
        change = abs(values.diff("step")).max(space) / largest[1:]
        mean, largest, change = dask.compute(mean, largest, change, scheduler="threads")
        print("step        time          mean           max        change")
        for number, step in enumerate(mean["step"].values):
            changed = f"{float(change[number - 1]):13.4e}" if number else " " * 13
            print(
                f"{int(step):4} {float(mean['time'][number]):11.4e} "
                f"{float(mean[number]):13.6e} {float(largest[number]):13.6e} {changed}"
            )
        detached = stream.counters["bytes_detached"]
        print(f"{values.nbytes} bytes in {len(mean)} steps, {detached} made private")


if __name__ == "__main__":
    try:
        main()
    except xemem.Error as error:
        sys.exit(f"xarray_steps.py: {error}")
