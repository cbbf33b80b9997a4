//! Splits Rust source into code and comments, line by line.
//!
//! Called by [`super::source`]. String and character contents are blanked, so
//! that a rule about code does not fire on a text that mentions it. It knows
//! just enough of the language for that: strings, raw strings, characters,
//! lifetimes, nested block comments.

/// One line of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    /// The code, with the contents of strings left out.
    pub(crate) code: String,
    /// The text of comments on this line, markers included.
    pub(crate) comment: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Code,
    LineComment,
    BlockComment { depth: usize },
    Text { hashes: Option<usize> },
}

/// Splits `source` into lines.
pub(crate) fn split(source: &str) -> Vec<Line> {
    let chars: Vec<char> = source.chars().collect();
    let mut scanner = Scanner {
        chars: &chars,
        at: 0,
        state: State::Code,
        lines: vec![Line::default()],
    };
    while scanner.at < chars.len() {
        scanner.step();
    }
    if source.ends_with('\n') {
        scanner.lines.pop();
    }
    scanner.lines
}

struct Scanner<'a> {
    chars: &'a [char],
    at: usize,
    state: State,
    lines: Vec<Line>,
}

impl Scanner<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    /// Takes `count` characters into the code or comment of the current line.
    fn take(&mut self, count: usize) {
        for _ in 0..count {
            let c = self.peek(0);
            self.at += 1;
            if c == '\n' {
                self.lines.push(Line::default());
                continue;
            }
            let Some(line) = self.lines.last_mut() else {
                continue;
            };
            match self.state {
                State::Code => line.code.push(c),
                State::LineComment | State::BlockComment { .. } => line.comment.push(c),
                State::Text { .. } => {}
            }
        }
    }

    fn step(&mut self) {
        match self.state {
            State::Code => self.step_code(),
            State::LineComment => {
                if self.peek(0) == '\n' {
                    self.state = State::Code;
                }
                self.take(1);
            }
            State::BlockComment { depth } => self.step_block(depth),
            State::Text { hashes } => self.step_text(hashes),
        }
    }

    fn step_code(&mut self) {
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => {
                self.state = State::LineComment;
                self.take(2);
            }
            ('/', '*') => {
                self.state = State::BlockComment { depth: 1 };
                self.take(2);
            }
            ('"', _) => {
                self.take(1);
                self.state = State::Text { hashes: None };
            }
            ('r', '"' | '#') if !self.after_word() => self.open_raw(),
            ('b' | 'c', 'r') if !self.after_word() && matches!(self.peek(2), '"' | '#') => {
                self.take(1);
                self.open_raw();
            }
            ('\'', _) => self.skip_character(),
            _ => self.take(1),
        }
    }

    /// Is the character before this one part of a word (so that `r"` does not
    /// start a raw string)?
    fn after_word(&self) -> bool {
        let before = self.at.checked_sub(1).and_then(|at| self.chars.get(at));
        before.is_some_and(|c| c.is_alphanumeric() || *c == '_')
    }

    fn open_raw(&mut self) {
        let hashes = (1..).take_while(|&n| self.peek(n) == '#').count();
        if self.peek(1 + hashes) != '"' {
            // A raw identifier such as `r#type`.
            self.take(1);
            return;
        }
        self.take(2 + hashes);
        self.state = State::Text {
            hashes: Some(hashes),
        };
    }

    /// Skips a character literal; a lifetime is ordinary code.
    fn skip_character(&mut self) {
        let length = if self.peek(1) == '\\' {
            (3..12).find(|&n| self.peek(n) == '\'')
        } else {
            (self.peek(2) == '\'').then_some(2)
        };
        match length {
            Some(length) => self.at += length + 1,
            None => self.take(1),
        }
    }

    fn step_block(&mut self, depth: usize) {
        match (self.peek(0), self.peek(1)) {
            ('/', '*') => {
                self.state = State::BlockComment { depth: depth + 1 };
                self.take(2);
            }
            ('*', '/') => {
                self.take(2);
                self.state = match depth {
                    1 => State::Code,
                    _ => State::BlockComment { depth: depth - 1 },
                };
            }
            _ => self.take(1),
        }
    }

    fn step_text(&mut self, hashes: Option<usize>) {
        match (self.peek(0), hashes) {
            ('\\', None) => self.take(2),
            ('"', None) => {
                self.state = State::Code;
                self.take(1);
            }
            ('"', Some(count)) if (1..=count).all(|n| self.peek(n) == '#') => {
                self.state = State::Code;
                self.take(1 + count);
            }
            _ => self.take(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(source: &str) -> Vec<String> {
        split(source).into_iter().map(|line| line.code).collect()
    }

    #[test]
    fn strings_are_blanked() {
        assert_eq!(code("f(\"unsafe { \\\" }\");"), ["f(\"\");"]);
        assert_eq!(code("r#\"a \" unsafe\"# + 1"), ["r#\"\"# + 1"]);
        assert_eq!(code("br\"unsafe\";x"), ["br\"\";x"]);
    }

    #[test]
    fn strings_over_several_lines_keep_the_line_count() {
        let lines = code("let a = \"one\ntwo\";\nlet b;\n");
        assert_eq!(lines, ["let a = \"", "\";", "let b;"]);
    }

    #[test]
    fn comments_are_kept_apart() {
        let lines = split("let a = 1; // why\n/* x /* y */ z */ let b;\n");
        assert_eq!(lines[0].code, "let a = 1; ");
        assert_eq!(lines[0].comment, "// why");
        assert_eq!(lines[1].code, " let b;");
        assert_eq!(lines[1].comment, "/* x /* y */ z */");
    }

    #[test]
    fn quotes_in_characters_and_lifetimes_open_no_string() {
        assert_eq!(
            code("m('\"', b'\\'', '\\u{1F600}') \"s\""),
            ["m(, b, ) \"\""]
        );
        assert_eq!(code("fn f<'a>(x: &'a str) {}"), ["fn f<'a>(x: &'a str) {}"]);
        assert_eq!(code("r#type + r"), ["r#type + r"]);
    }
}
