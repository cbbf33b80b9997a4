"""Snapshots as xarray datasets. Imported when first needed."""


def dataset(snapshot, names):
    """The dataset that shows `names` of `snapshot`, all variables if empty.

    Axis labels become dimensions; an axis without a label, or whose label has
    another length elsewhere, gets one of its own. Scalars called ``step`` and
    ``time`` become coordinates; without them the snapshot's own do.
    """
    try:
        import xarray
    except ImportError as error:
        raise ImportError(
            "to_xarray() needs xarray: pip install xarray"
        ) from error
    lengths = {}
    arrays = {}
    for name in names or snapshot.keys():
        variable = snapshot.variables.get(name)
        values = snapshot[name]
        dims = _dimensions(name, variable.axes, values.shape, lengths)
        attrs = {"role": variable.role}
        if variable.unit:
            attrs["units"] = variable.unit
        arrays[name] = xarray.Variable(dims, values, attrs)
    result = xarray.Dataset(arrays)
    for name, value in (("step", snapshot.step), ("time", snapshot.time)):
        if name not in result:
            result = result.assign_coords({name: value})
        elif result[name].ndim == 0:
            result = result.set_coords(name)
    result.attrs["step"] = snapshot.step
    result.attrs["time"] = snapshot.time
    result.attrs["generation"] = snapshot.generation
    return result


def _dimensions(name, labels, shape, lengths):
    """Names for the axes of `shape`; `lengths` knows those in use."""
    dims = []
    for axis, length in enumerate(shape):
        label = labels[axis] if axis < len(labels) else f"{name}_{axis}"
        if label in dims or lengths.get(label, length) != length:
            label = f"{name}_{label}_{axis}"
        lengths[label] = length
        dims.append(label)
    return dims
