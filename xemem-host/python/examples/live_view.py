"""A slice of a variable, step by step, while the simulation runs.

Shows the first two axes in a window; further axes are fixed, at their middle
unless `--at` says where. Without a display, or with `--output FOLDER`, every
step becomes a PNG file instead.

    python live_view.py snap/flux --var flux --at z=8 group=0
"""

import argparse
import os
import pathlib
import sys

import matplotlib

import xemem


def plane(values, axes, fixed):
    """The 2-D slice of `values`, and what it is a slice of, as text."""
    index, where = [], []
    for number, length in enumerate(values.shape):
        label = axes[number] if number < len(axes) else str(number)
        if number < 2:
            index.append(slice(None))
        else:
            at = fixed.get(label, length // 2)
            index.append(at)
            where.append(f"{label}={at}")
    # Still a view of the snapshot: nothing was copied.
    return values[tuple(index)], " ".join(where)


def position(text):
    label, _, number = text.partition("=")
    return label, int(number)


def main():
    parser = argparse.ArgumentParser(description="A live view of a 2-D slice.")
    parser.add_argument("name", help="name of the arena")
    parser.add_argument("--var", default="flux", help="variable [flux]")
    parser.add_argument(
        "--at", nargs="*", type=position, default=[], metavar="AXIS=INDEX"
    )
    parser.add_argument("--output", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS")
    arguments = parser.parse_args()

    has_display = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    folder = arguments.output
    if folder is None and not has_display:
        folder = pathlib.Path(".")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots()
    image = None
    # The newest each time: a view that lags behind is of no use.
    with xemem.attach(
        arguments.name, policy="latest", timeout=arguments.timeout
    ) as stream:
        for snap in stream:
            variable = snap.variables[arguments.var]
            values, where = plane(
                snap[arguments.var], variable.axes, dict(arguments.at)
            )
            if image is None:
                # The first axis to the right, the second upward.
                image = axis.imshow(values.T, origin="lower")
                figure.colorbar(image, label=variable.unit)
                axis.set_xlabel((variable.axes or ("0", "1"))[0])
                axis.set_ylabel((variable.axes or ("0", "1"))[1])
            else:
                image.set_data(values.T)
                image.set_clim(values.min(), values.max())
            axis.set_title(f"{arguments.var} {where}  step {snap.step}, t = {snap.time:.4g}")
            if folder is None:
                pyplot.pause(0.001)
            else:
                figure.savefig(folder / f"{arguments.var}-{snap.step:06}.png")
            print(f"step {snap.step} shown, {stream.missed} missed", flush=True)
    if folder is None:
        pyplot.show()


if __name__ == "__main__":
    try:
        main()
    except xemem.Error as error:
        sys.exit(f"live_view.py: {error}")
