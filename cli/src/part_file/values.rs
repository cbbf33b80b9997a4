//! Single values of a part file: from TOML to what `create` takes.
//!
//! Each function takes one value and says what is wrong with it and what to
//! write. What flags accept is decided by [`enclave_vmm::config`] for both.

use std::ops::Range;
use std::path::PathBuf;

use enclave_abi::boot::MAX_CORES;
use enclave_vmm::config::{
    self, CoreRequest, MAX_CORE, MAX_EXPORTS, MAX_NODE, check_cores, check_memory, check_name,
};
use enclave_vmm::features::{Features, parse_without};
use enclave_vmm::isolation::Isolation;
use enclave_vmm::machine::{Backing, Export, Ring};
use toml::Spanned;
use toml::de::{DeArray, DeInteger, DeValue};

/// What is wrong with a value, and what to do.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) what: String,
    pub(super) fix: String,
}

impl Wrong {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        let (what, fix) = (what.into(), fix.into());
        Self { what, fix }
    }
}

/// Something wrong at a place of the file.
type WrongAt = (Range<usize>, Wrong);

/// "a string", for messages.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn is_not(value: &DeValue<'_>, wanted: &str, fix: &str) -> Wrong {
    Wrong::new(format!("{} is no {wanted}", kind(value)), fix)
}

/// A number that fits; `None` for negative and for absurd ones.
fn number(integer: &DeInteger<'_>) -> Option<usize> {
    usize::from_str_radix(integer.as_str(), integer.radix()).ok()
}

pub(super) fn name(value: &DeValue<'_>) -> Result<String, Wrong> {
    let fix = "write name = \"sim\"";
    let name = value.as_str().ok_or_else(|| is_not(value, "name", fix))?;
    check_name(name).map_err(|error| Wrong::new(error.to_string(), fix))?;
    Ok(name.to_owned())
}

pub(super) fn cores(value: &DeValue<'_>) -> Result<CoreRequest, Wrong> {
    let fix = "write cores = 1, or a list such as cores = \"2,4-5\"";
    let request = match value {
        DeValue::Integer(count) => {
            let count = number(count).filter(|count| *count <= MAX_CORE);
            let what = format!("cores are counted from 1 to {MAX_CORE}");
            CoreRequest::Count(count.ok_or_else(|| Wrong::new(what, fix))?)
        }
        DeValue::String(text) => {
            config::parse_cores(text).map_err(|error| Wrong::new(error.to_string(), fix))?
        }
        DeValue::Array(list) => CoreRequest::List(core_list(list, fix)?),
        other => return Err(is_not(other, "number or list of cores", fix)),
    };
    check_cores(&request).map_err(|error| Wrong::new(error.to_string(), fix))?;
    Ok(request)
}

fn core_list(list: &DeArray<'_>, fix: &str) -> Result<Vec<usize>, Wrong> {
    let mut cores = Vec::new();
    for item in list.iter() {
        let core = item.get_ref().as_integer().and_then(number);
        let core = core.filter(|core| *core <= MAX_CORE);
        let what = format!("a core is a number from 0 to {MAX_CORE}");
        cores.push(core.ok_or_else(|| Wrong::new(what, fix))?);
    }
    cores.sort_unstable();
    cores.dedup();
    Ok(cores)
}

pub(super) fn memory(value: &DeValue<'_>) -> Result<u64, Wrong> {
    let fix = "write mem = \"512M\"";
    let text = match value {
        DeValue::String(text) => text,
        // Everybody means another unit.
        DeValue::Integer(bare) => {
            let what = format!("{} has no unit", bare.as_str());
            return Err(Wrong::new(what, fix));
        }
        other => return Err(is_not(other, "size", fix)),
    };
    let bytes = config::parse_size(text).map_err(|error| Wrong::new(error.to_string(), fix))?;
    check_memory(bytes).map_err(|error| Wrong::new(error.to_string(), fix))?;
    Ok(bytes)
}

pub(super) fn room(value: &DeValue<'_>) -> Result<usize, Wrong> {
    let what = format!("room is for 1 to {MAX_CORES} cores");
    let room = value.as_integer().and_then(number);
    let room = room.filter(|room| (1..=MAX_CORES).contains(room));
    room.ok_or_else(|| Wrong::new(what, "write max-cores = 4, or leave it out"))
}

pub(super) fn node(value: &DeValue<'_>) -> Result<usize, Wrong> {
    let what = format!("a node is a number from 0 to {MAX_NODE}");
    let node = value.as_integer().and_then(number);
    let node = node.filter(|node| *node <= MAX_NODE);
    node.ok_or_else(|| Wrong::new(what, "write node = 0, or leave it out"))
}

pub(super) fn yes_no(value: &DeValue<'_>) -> Result<bool, Wrong> {
    let wrong = || is_not(value, "yes or no", "write true or false, without quotes");
    value.as_bool().ok_or_else(wrong)
}

pub(super) fn path(value: &DeValue<'_>) -> Result<PathBuf, Wrong> {
    let fix = "write a path that begins with /";
    let text = value.as_str().ok_or_else(|| is_not(value, "path", fix))?;
    let path = PathBuf::from(text);
    match path.is_absolute() {
        true => Ok(path),
        false => Err(Wrong::new(
            format!("\"{text}\" depends on where you are"),
            fix,
        )),
    }
}

/// One of the words that a key knows.
fn word<T: Copy>(value: &DeValue<'_>, words: &[(&str, T)]) -> Result<T, Wrong> {
    let names: Vec<String> = words
        .iter()
        .map(|(name, _)| format!("\"{name}\""))
        .collect();
    let fix = format!("write one of {}", names.join(", "));
    let text = value.as_str().ok_or_else(|| is_not(value, "word", &fix))?;
    let found = words.iter().find(|(name, _)| *name == text);
    let unknown = || Wrong::new(format!("\"{text}\" is not known here"), fix);
    found.map(|(_, meaning)| *meaning).ok_or_else(unknown)
}

pub(super) fn ring(value: &DeValue<'_>) -> Result<Ring, Wrong> {
    let words = [("auto", Ring::Auto), ("0", Ring::Ring0), ("3", Ring::Ring3)];
    word(value, &words)
}

pub(super) fn backing(value: &DeValue<'_>) -> Result<Backing, Wrong> {
    let words = [
        ("auto", Backing::Auto),
        ("huge", Backing::Huge2m),
        ("huge1g", Backing::Huge1g),
        ("small", Backing::Small),
    ];
    word(value, &words)
}

pub(super) fn isolation(value: &DeValue<'_>) -> Result<Isolation, Wrong> {
    let words = [
        ("auto", Isolation::Auto),
        ("require", Isolation::Require),
        ("off", Isolation::Off),
    ];
    word(value, &words)
}

/// The strings of a list, each with its place.
fn strings<'a>(
    value: &'a Spanned<DeValue<'_>>,
    fix: &str,
) -> Result<Vec<(Range<usize>, &'a str)>, WrongAt> {
    let of =
        |item: &Spanned<DeValue<'_>>, wanted| (item.span(), is_not(item.get_ref(), wanted, fix));
    let list = value
        .get_ref()
        .as_array()
        .ok_or_else(|| of(value, "list"))?;
    list.iter()
        .map(|item| match item.get_ref().as_str() {
            Some(text) => Ok((item.span(), text)),
            None => Err(of(item, "string")),
        })
        .collect()
}

pub(super) fn exports(value: &Spanned<DeValue<'_>>) -> Result<Vec<Export>, WrongAt> {
    let fix = "write export = [\"/host/dir=/guest/dir:rw\"]";
    let mut exports: Vec<Export> = Vec::new();
    for (at, text) in strings(value, fix)? {
        let wrong = |what: String| (at.clone(), Wrong::new(what, fix));
        let export = config::parse_export(text).map_err(|error| wrong(error.to_string()))?;
        if exports.iter().any(|other| other.guest == export.guest) {
            return Err(wrong(format!("\"{}\" is exported twice", export.guest)));
        }
        exports.push(export);
    }
    if exports.len() > MAX_EXPORTS {
        let what = format!("{} exports, {MAX_EXPORTS} are possible", exports.len());
        return Err((
            value.span(),
            Wrong::new(what, "export a directory above them"),
        ));
    }
    Ok(exports)
}

pub(super) fn without(value: &Spanned<DeValue<'_>>) -> Result<Features, WrongAt> {
    let fix = "write without = [\"smap\", …]: enclavectl create --help";
    let mut all = Features::default();
    for (at, text) in strings(value, fix)? {
        let one = parse_without(text).map_err(|error| (at, Wrong::new(error.to_string(), fix)))?;
        all = Features(all.0 | one.0);
    }
    Ok(all)
}
