//! What an arena says about its variables, as JSON.
//!
//! Called by `enclavectl snap schema` and by the Python package, so that both
//! say the same. Two forms: [`json()`] lists the table as it is, [`conduit`]
//! nests it the way Conduit describes memory (a leaf per variable with type,
//! offset and stride), which tools such as Ascent read. Pure; descriptions
//! must have been checked.

use enclave_abi::arena::{GenerationRecord, VarDesc, dtype, text};
use serde_json::{Map, Value, json};

/// Version of the [`json()`] form.
pub const SCHEMA_VERSION: u32 = 1;

/// What is described.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    /// Name of the arena.
    pub arena: &'a str,
    /// Payload bytes.
    pub size_bytes: u64,
    /// The snapshot, if one is meant.
    pub record: Option<&'a GenerationRecord>,
    /// Checked descriptions.
    pub variables: &'a [VarDesc],
}

/// The word for a [`VarDesc::role`].
#[must_use]
pub fn role_name(role: u8) -> &'static str {
    match role {
        0 => "data",
        1 => "coordinate",
        2 => "element",
        3 => "vertex",
        _ => "other",
    }
}

/// The variable table: one object per variable, in the table's order.
#[must_use]
pub fn json(what: &Described<'_>) -> Value {
    let variables: Vec<Value> = what.variables.iter().map(variable).collect();
    let mut document = json!({
        "schema": SCHEMA_VERSION,
        "arena": what.arena,
        "size_bytes": what.size_bytes,
        "endianness": "little",
        "variables": variables,
    });
    if let (Some(record), Some(object)) = (what.record, document.as_object_mut()) {
        object.insert("generation".into(), record.generation.into());
        object.insert("step".into(), record.step.into());
        object.insert("time".into(), time(record));
    }
    document
}

fn time(record: &GenerationRecord) -> Value {
    // JSON has no NaN: null then.
    f64::from_bits(record.time_bits).into()
}

fn variable(var: &VarDesc) -> Value {
    json!({
        "name": var.name(),
        "dtype": type_name(var),
        "lanes": var.dtype_lanes,
        "shape": dimensions(var, &var.shape),
        "strides": dimensions(var, &var.strides),
        "order": order(var),
        "offset": var.offset,
        "nbytes": var.nbytes,
        "unit": text(&var.unit).unwrap_or(""),
        "axes": axes(var),
        "role": role_name(var.role),
    })
}

fn order(var: &VarDesc) -> String {
    char::from(var.order).to_string()
}

fn axes(var: &VarDesc) -> Vec<&str> {
    let labels = text(&var.axis_labels).unwrap_or("").split(',');
    labels.map(str::trim).filter(|l| !l.is_empty()).collect()
}

fn dimensions<'a, T>(var: &VarDesc, values: &'a [T]) -> &'a [T] {
    let ndim = usize::try_from(var.ndim).unwrap_or(usize::MAX);
    values.get(..ndim).unwrap_or(values)
}

/// The type of a lane as numpy and Conduit call it, `float64` for instance.
fn type_name(var: &VarDesc) -> String {
    let kind = match var.dtype_code {
        dtype::INT => "int",
        dtype::UINT => "uint",
        dtype::FLOAT => "float",
        _ => "complex",
    };
    format!("{kind}{}", var.dtype_bits)
}

/// The table as a Conduit schema over the arena's payload.
///
/// Leaves have Conduit's own keys, and beside them `shape`, `strides`,
/// `order`, `unit` and `axes`, which Conduit ignores: its leaves have one
/// dimension. Complex numbers and lanes are neighbours of the simple type. A
/// variable with holes is described with them. One whose place is taken stands
/// at the top, by its whole name, primed if need be. `state` is the Mesh
/// Blueprint's.
#[must_use]
pub fn conduit(what: &Described<'_>) -> Value {
    let mut root = Map::new();
    for var in what.variables {
        let path: Vec<&str> = var.name().unwrap_or("").split('/').collect();
        if !insert(&mut root, &path, leaf(var)) {
            // Part of its path is a variable itself, or there are two of it.
            let mut name = var.name().unwrap_or("").to_owned();
            while root.contains_key(&name) {
                name.push('\'');
            }
            root.insert(name, leaf(var));
        }
    }
    if let Some(record) = what.record {
        for (key, dtype, value) in [
            ("cycle", "uint64", record.step.into()),
            ("time", "float64", time(record)),
        ] {
            let value = json!({ "dtype": dtype, "value": value });
            insert(&mut root, &["state", key], value);
        }
    }
    Value::Object(root)
}

/// Puts `leaf` at `path`; not if something else is there or on the way.
fn insert(node: &mut Map<String, Value>, path: &[&str], leaf: Value) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return false;
    };
    if rest.is_empty() {
        let is_free = !node.contains_key(*first);
        if is_free {
            node.insert((*first).to_owned(), leaf);
        }
        return is_free;
    }
    let inner = node
        .entry(*first)
        .or_insert_with(|| Value::Object(Map::new()));
    match inner.as_object_mut() {
        // A leaf says its type: nothing goes below it.
        Some(inner) if !inner.get("dtype").is_some_and(Value::is_string) => {
            insert(inner, rest, leaf)
        }
        _ => false,
    }
}

fn leaf(var: &VarDesc) -> Value {
    let is_complex = var.dtype_code == dtype::COMPLEX;
    let (name, bits) = if is_complex {
        let bits = var.dtype_bits / 2;
        (format!("float{bits}"), bits)
    } else {
        (type_name(var), var.dtype_bits)
    };
    let element_bytes = u64::from(bits / 8).max(1);
    let count = dimensions(var, &var.shape)
        .iter()
        .try_fold(var.element_bytes(), |bytes, &n| bytes.checked_mul(n))
        .filter(|_| is_dense(var))
        .unwrap_or(var.nbytes)
        / element_bytes;
    json!({
        "dtype": name,
        "number_of_elements": count,
        "offset": var.offset,
        "stride": element_bytes,
        "element_bytes": element_bytes,
        "endianness": "little",
        "shape": dimensions(var, &var.shape),
        "strides": dimensions(var, &var.strides),
        "order": order(var),
        "unit": text(&var.unit).unwrap_or(""),
        "axes": axes(var),
    })
}

/// Whether elements follow each other without holes, in whatever order.
fn is_dense(var: &VarDesc) -> bool {
    let shape = dimensions(var, &var.shape);
    let strides = dimensions(var, &var.strides);
    let mut dims: Vec<(i64, u64)> = strides.iter().copied().zip(shape.iter().copied()).collect();
    // The stride of a dimension with one element means nothing.
    dims.retain(|&(_, count)| count != 1);
    dims.sort_unstable();
    let mut wanted = var.element_bytes();
    dims.into_iter().all(|(stride, count)| {
        let fits = u64::try_from(stride) == Ok(wanted);
        wanted = wanted.saturating_mul(count);
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn var(name: &str, code: u8, bits: u8, shape: &[u64], strides: &[i64]) -> VarDesc {
        let mut desc = VarDesc::new_zeroed();
        desc.name[..name.len()].copy_from_slice(name.as_bytes());
        (desc.dtype_code, desc.dtype_bits, desc.dtype_lanes) = (code, bits, 1);
        desc.ndim = u32::try_from(shape.len()).expect("few");
        desc.shape[..shape.len()].copy_from_slice(shape);
        desc.strides[..strides.len()].copy_from_slice(strides);
        desc.order = b'F';
        desc.nbytes = desc.element_bytes() * shape.iter().product::<u64>();
        desc
    }

    fn flux() -> VarDesc {
        let mut flux = var("fields/flux", dtype::FLOAT, 64, &[4, 2], &[8, 32]);
        flux.offset = 4096;
        flux.unit[..3].copy_from_slice(b"m-2");
        flux.axis_labels[..3].copy_from_slice(b"x,y");
        flux
    }

    fn described(variables: &[VarDesc]) -> Described<'_> {
        Described {
            arena: "snap/flux",
            size_bytes: 8192,
            record: None,
            variables,
        }
    }

    #[test]
    fn the_table_is_listed_as_it_is() {
        let record = GenerationRecord {
            generation: 3,
            step: 30,
            time_bits: f64::NAN.to_bits(),
            ..GenerationRecord::default()
        };
        let variables = [flux()];
        let what = Described {
            record: Some(&record),
            ..described(&variables)
        };
        let document = json(&what);
        assert_eq!(document["step"], 30);
        assert_eq!(document["time"], Value::Null);
        let expected = serde_json::json!({
            "name": "fields/flux", "dtype": "float64", "lanes": 1,
            "shape": [4, 2], "strides": [8, 32], "order": "F",
            "offset": 4096, "nbytes": 64, "unit": "m-2", "axes": ["x", "y"], "role": "data",
        });
        assert_eq!(document["variables"][0], expected);
    }

    #[test]
    fn conduit_nests_paths_and_names_its_own_keys() {
        let leaf = &conduit(&described(&[flux()]))["fields"]["flux"];
        assert_eq!(leaf["dtype"], "float64");
        assert_eq!(leaf["number_of_elements"], 8);
        assert_eq!(
            (leaf["offset"].as_u64(), leaf["stride"].as_u64()),
            (Some(4096), Some(8))
        );
        assert_eq!(
            (&leaf["endianness"], &leaf["element_bytes"]),
            (&json!("little"), &json!(8))
        );
    }

    #[test]
    fn complex_numbers_and_lanes_are_neighbouring_reals() {
        let complex = var("c", dtype::COMPLEX, 128, &[3], &[16]);
        let mut lanes = var("v", dtype::FLOAT, 32, &[5], &[12]);
        (lanes.dtype_lanes, lanes.nbytes) = (3, 60);
        let root = conduit(&described(&[complex, lanes]));
        assert_eq!(
            (&root["c"]["dtype"], &root["c"]["number_of_elements"]),
            (&json!("float64"), &json!(6))
        );
        assert_eq!(root["v"]["number_of_elements"], 15);
    }

    #[test]
    fn a_variable_with_holes_is_described_with_them() {
        let mut holes = var("h", dtype::INT, 32, &[4], &[16]);
        holes.nbytes = 52;
        assert_eq!(conduit(&described(&[holes]))["h"]["number_of_elements"], 13);
    }

    #[test]
    fn names_that_collide_all_stay() {
        let scalar = |name| var(name, dtype::UINT, 8, &[], &[]);
        let variables = ["a", "a/b", "s/t", "s", "state/cycle"].map(scalar);
        let record = GenerationRecord::default();
        let what = Described {
            record: Some(&record),
            ..described(&variables)
        };
        let root = conduit(&what);
        for name in ["a", "a/b"] {
            assert_eq!(root[name]["dtype"], "uint8", "{name}");
        }
        assert_eq!(root["s"]["t"]["dtype"], "uint8");
        assert_eq!(root["s'"]["dtype"], "uint8");
        // The producer's own word for the cycle stands.
        assert_eq!(root["state"]["cycle"]["dtype"], "uint8");
        assert_eq!(root["state"]["time"]["dtype"], "float64");
    }
}
