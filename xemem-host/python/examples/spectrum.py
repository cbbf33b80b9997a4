"""Energy spectrum of each snapshot of an arena, checked against its producer.

The same figures as the `spectrum` program in Rust: per energy group the sum
over all cells of flux times cell volume, added in the order of memory, so the
numbers are equal to the last bit. A snapshot is verified when checksum and
spectrum are those that the simulation stored in the same snapshot.

    enclavectl run sim -- snap-mini &
    python spectrum.py snap/flux --json
"""

import argparse
import json
import sys
import time

import numpy as np

import xemem


def spectrum_of(flux, cell_volume):
    """Sum over cells per group; groups are the last, slowest axis."""
    groups = flux.reshape(-1, flux.shape[-1], order="F")
    # accumulate() adds one by one, where sum() would add pairwise.
    return np.add.accumulate(groups, axis=0)[-1] * cell_volume


def checksum_of(flux):
    """FNV-1a over the 64-bit words, in the order of memory."""
    value = 0xCBF29CE484222325
    for word in flux.reshape(-1, order="F").view("<u8").tolist():
        value = ((value ^ word) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def analyse(snap):
    """One snapshot as a dictionary of results."""
    age_us = max(0.0, time.time() - snap.published_at) * 1e6
    flux = snap["flux"]
    spectrum = spectrum_of(flux, float(snap["cell_volume"]))
    checksum_ok = spectrum_ok = None
    # The producer may check itself less often than it publishes.
    if int(snap["checksum_step"]) == snap.step:
        checksum_ok = checksum_of(flux) == int(snap["checksum"])
        spectrum_ok = bool(np.allclose(spectrum, snap["spectrum"], rtol=1e-12, atol=0))
    peak = int(spectrum.argmax())
    return {
        "step": snap.step,
        "time": snap.time,
        "generation": snap.generation,
        "bytes": snap.nbytes,
        "runs": snap.runs,
        "chunks_copied": snap.chunks_copied,
        "publish_cycles": snap.publish_cycles,
        "peak_group": peak + 1,
        "peak_value": float(spectrum[peak]),
        "spectrum": spectrum.tolist(),
        "checksum_ok": checksum_ok,
        "spectrum_ok": spectrum_ok,
        # Asked last: did anything change while we read?
        "valid": snap.valid(),
        "age_us": age_us,
    }


def is_torn(result):
    return not result["valid"] or False in (result["checksum_ok"], result["spectrum_ok"])


def main():
    parser = argparse.ArgumentParser(description="Energy spectrum, live.")
    parser.add_argument("name", help="name of the arena")
    parser.add_argument("--policy", choices=["every", "latest"], default="every")
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS")
    parser.add_argument("--json", action="store_true", help="one line of JSON each")
    arguments = parser.parse_args()

    results = []
    with xemem.attach(
        arguments.name, policy=arguments.policy, timeout=arguments.timeout
    ) as stream:
        for snap in stream:
            result = {"type": "step", **analyse(snap), "missed": stream.missed}
            results.append(result)
            if arguments.json:
                print(json.dumps(result), flush=True)
            else:
                print(
                    "step {step:5} time {time:10.4e} peak group {peak_group:3} "
                    "{peak_value:10.4f}".format(**result),
                    "TORN" if is_torn(result) else "whole",
                    flush=True,
                )
    torn = sum(map(is_torn, results))
    print(
        f"{len(results)} snapshots, {torn} torn, {stream.missed} missed: "
        f"{stream.end_reason}",
        file=sys.stderr,
    )
    return 1 if torn else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except xemem.Error as error:
        sys.exit(f"spectrum.py: {error}")
