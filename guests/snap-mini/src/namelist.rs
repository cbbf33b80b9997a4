//! Fortran namelist syntax: `&group key=value, key=value ... /`.
//!
//! Used by `input` only. Understands what SNAP's decks contain: one group of
//! scalar assignments, separated by blanks, commas or line ends, `!` comments,
//! letters of either case. Text before the group and after its end is ignored,
//! as Fortran does. Arrays, repeat counts and strings are refused.

use crate::failure::Failure;

/// Longest deck in bytes.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// One assignment; the key in lower case, the value as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    /// The key in lower case.
    pub(crate) key: String,
    /// The value as written.
    pub(crate) value: String,
    /// Line it stands on, from 1.
    pub(crate) line: usize,
}

/// A word or an equals sign, with its line.
type Token<'a> = (usize, &'a str);

/// Reads the assignments of `group`, in order.
pub(crate) fn parse(text: &str, group: &str) -> Result<Vec<Assignment>, Failure> {
    if text.len() > MAX_BYTES {
        return Err(Failure::new(
            "reading the deck",
            format_args!("it has {} bytes, more than {MAX_BYTES}", text.len()),
        ));
    }
    let mut tokens = tokens(text).skip_while(|(_, token)| {
        !token
            .strip_prefix('&')
            .is_some_and(|name| name.eq_ignore_ascii_case(group))
    });
    if tokens.next().is_none() {
        return Err(Failure::new(
            "reading the deck",
            format_args!("no group &{group} in it"),
        ));
    }
    let mut assignments = Vec::new();
    while let Some((line, key)) = tokens.next() {
        match key {
            "/" | "&end" | "&END" => return Ok(assignments),
            "=" => return Err(refuse(line, "a value without a key")),
            _ => assignments.push(assignment(line, key, &mut tokens)?),
        }
    }
    Err(Failure::new(
        "reading the deck",
        format_args!("group &{group} has no closing /"),
    ))
}

/// Reads `= value` after a key.
fn assignment<'a>(
    line: usize,
    key: &str,
    tokens: &mut impl Iterator<Item = Token<'a>>,
) -> Result<Assignment, Failure> {
    let is_name = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Err(refuse(line, format_args!("'{}' is no key", shorten(key))));
    }
    match tokens.next() {
        Some((_, "=")) => {}
        _ => return Err(refuse(line, format_args!("no = after '{}'", shorten(key)))),
    }
    match tokens.next() {
        Some((line, value)) if !matches!(value, "=" | "/") => Ok(Assignment {
            key: key.to_ascii_lowercase(),
            value: value.to_owned(),
            line,
        }),
        _ => Err(refuse(
            line,
            format_args!("no value for '{}'", shorten(key)),
        )),
    }
}

/// Splits the text into words, `=` and `/`, comments removed.
fn tokens(text: &str) -> impl Iterator<Item = Token<'_>> {
    (1..).zip(text.lines()).flat_map(|(number, line)| {
        let code = line.split('!').next().unwrap_or("");
        code.split([' ', '\t', ',', '\r'])
            .flat_map(|word| word.split_inclusive(['=', '/']))
            .flat_map(|piece| match piece.char_indices().last() {
                Some((at, '=' | '/')) => {
                    let (word, sign) = piece.split_at(at);
                    [word, sign]
                }
                _ => [piece, ""],
            })
            .filter(|token| !token.is_empty())
            .map(move |token| (number, token))
    })
}

/// At most 40 characters of a word from the deck, safe to print.
pub(crate) fn shorten(word: &str) -> String {
    word.chars()
        .take(40)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

fn refuse(line: usize, why: impl std::fmt::Display) -> Failure {
    Failure::new(format!("reading the deck, line {line}"), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        let parsed = parse(text, "invar").unwrap();
        parsed.into_iter().map(|a| (a.key, a.value)).collect()
    }

    #[test]
    fn a_deck_as_snap_writes_it() {
        let text = "! Input from namelist\n&INVAR\n  npey=1 ! ranks\n  NX = 4, ny=4\n\
                    lx=0.8,epsi=1.0D-4 fixup=.true.\n/\ntrailing = words";
        let expected = [
            ("npey", "1"),
            ("nx", "4"),
            ("ny", "4"),
            ("lx", "0.8"),
            ("epsi", "1.0D-4"),
            ("fixup", ".true."),
        ];
        let expected = expected.map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(pairs(text), expected);
    }

    #[test]
    fn layout_does_not_matter() {
        let one = pairs("&invar nx=4 ny=5/");
        assert_eq!(one, pairs("title &invar\r\n\tnx\n=\n4,,\nny= 5\r\n/\r\n"));
        assert_eq!(one, pairs("&invar nx =4 ny=5 &end"));
        assert!(pairs("&invar /").is_empty());
    }

    #[test]
    fn broken_decks_are_refused_with_their_line() {
        for (text, why) in [
            ("", "no group"),
            ("invar nx=4 /", "no group"),
            ("&other nx=4 /", "no group"),
            ("&invar nx=4", "no closing"),
            ("&invar nx=4 ! /", "no closing"),
            ("&invar\nnx /", "no = after 'nx'"),
            ("&invar\n\nnx= /", "line 3"),
            ("&invar nx = = 4 /", "no value for 'nx'"),
            ("&invar = 4 /", "without a key"),
            ("&invar nx(1)=4 /", "'nx(1)' is no key"),
            ("&invar nx=4 5 /", "'5' is no key"),
            ("&invar \u{1b}[2J=4 /", "'?[2J' is no key"),
        ] {
            let failure = parse(text, "invar").unwrap_err().to_string();
            assert!(failure.contains(why), "{text:?}: {failure}");
        }
    }

    #[test]
    fn huge_decks_and_huge_words_stay_bounded() {
        let huge = " ".repeat(MAX_BYTES + 1);
        assert!(parse(&huge, "invar").is_err());
        let word = format!("&invar {}=1 /", "é".repeat(100_000));
        assert!(parse(&word, "invar").unwrap_err().to_string().len() < 400);
    }
}
