//! `snap schema`: what an arena says about its variables.
//!
//! Needs no snapshot: the table is there once the program has described its
//! variables. With one its step and time are told, too. The forms are those
//! of [`xemem_host::schema`], which the Python package shares.

use std::time::Duration;

use clap::{Args, ValueEnum};
use enclave_vmm::failure::{Class, Failure};
use serde_json::Value;
use xemem_host::schema::{self, Described};
use xemem_host::{ClientError, Policy, Stream};

use super::broker;
use crate::output::{self, Format};

/// Describe the variables of an arena.
#[derive(Debug, Args)]
pub(crate) struct Schema {
    /// Arena.
    name: String,
    /// table: for people; json: the variable table; conduit: a Conduit schema
    /// over the arena's bytes.
    #[arg(long, value_enum, default_value_t = Form::Table)]
    format: Form,
    /// Seconds to wait for the arena.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    timeout: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Json,
    Conduit,
}

impl Schema {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let what = format!("describe {}", self.name);
        let failed =
            |error: &ClientError| broker::failure(&what, error).with_hint("enclavectl snap ls");
        let timeout = Duration::from_secs(self.timeout.into());
        let mut stream = Stream::attach(&broker::socket()?, &self.name, Policy::Latest, timeout)
            .map_err(|e| failed(&e))?;
        let size_bytes = stream.geometry().size_bytes;
        let record = match stream.next(Some(Duration::ZERO)) {
            Ok(snapshot) => snapshot.map(|snapshot| *snapshot.record()),
            Err(ClientError::Timeout) => None,
            Err(error) => return Err(failed(&error)),
        };
        let variables = stream.variables();
        let described = Described {
            arena: &self.name,
            size_bytes,
            record: record.as_ref(),
            variables: &variables,
        };
        match (self.format, format) {
            (Form::Conduit, _) => document(&schema::conduit(&described)),
            (Form::Json, _) | (Form::Table, Format::Json) => document(&schema::json(&described)),
            (Form::Table, Format::Text) => table(&schema::json(&described)),
        }
    }
}

fn document(value: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(Class::Failure, "print JSON", e))?;
    output::line(&text)
}

fn table(document: &Value) -> Result<(), Failure> {
    let columns = [
        "name", "dtype", "shape", "order", "unit", "axes", "offset", "nbytes",
    ];
    let variables = document["variables"].as_array().into_iter().flatten();
    let rows: Vec<Vec<String>> = variables
        .map(|variable| {
            columns
                .iter()
                .map(|column| cell(&variable[*column]))
                .collect()
        })
        .collect();
    let heading = columns.map(str::to_uppercase);
    output::table(&heading.each_ref().map(String::as_str), &rows)
}

/// A value in a table; a list without its brackets.
fn cell(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => output::printable(text),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cells_are_what_people_read() {
        assert_eq!(cell(&json!([16, 8])), "16,8");
        assert_eq!(cell(&json!(["x", "y"])), "x,y");
        assert_eq!(cell(&json!("")), "-");
        assert_eq!(cell(&json!([])), "-");
        assert_eq!(cell(&json!(4096)), "4096");
        assert!(!cell(&json!("a\u{1b}[31m")).contains('\u{1b}'));
    }
}
