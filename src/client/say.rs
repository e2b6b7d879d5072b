//! What is printed, and where. A stdout that is closed is no reason to fail, and none to go on.

use std::io::{IsTerminal, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::api::{Failure, Json};

/// How answers are shown.
pub(super) struct Screen {
    /// JSON instead of tables.
    pub(super) json: bool,
    /// Whether colours may be used.
    pub(super) colour: bool,
}

impl Screen {
    pub(super) fn new(json: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            json,
            colour: !plain && std::io::stdout().is_terminal(),
        }
    }

    /// Shows an answer: as it came in JSON, or as a text made from its view.
    pub(super) fn answer<T, S>(&self, answer: Json, text: impl Fn(&T) -> S) -> Result<(), Failure>
    where
        T: DeserializeOwned,
        S: Into<Text>,
    {
        if self.json {
            return self.line(&answer.0.to_string());
        }
        let view = super::read(answer)?;
        self.line(&text(&view).into().render(self.colour))
    }

    /// Shows a value of our own.
    pub(super) fn value<S: Into<Text>>(
        &self,
        value: &impl Serialize,
        text: impl FnOnce() -> S,
    ) -> Result<(), Failure> {
        if self.json {
            let json =
                serde_json::to_string(value).map_err(|why| Failure::Strange(why.to_string()));
            return self.line(&json?);
        }
        self.line(&text().into().render(self.colour))
    }

    /// Prints a line (or several), at once.
    pub(super) fn line(&self, text: &str) -> Result<(), Failure> {
        let text = text.trim_end_matches('\n');
        let mut out = std::io::stdout().lock();
        let written = writeln!(out, "{text}").and_then(|()| out.flush());
        // Whoever read us has what they wanted.
        written.map_err(|_| Failure::Closed)
    }
}

/// A line on stdout; whoever no longer reads misses nothing.
pub fn say(text: &str) {
    writeln!(std::io::stdout().lock(), "{text}").ok();
}

/// A line on stderr.
pub(super) fn complain(text: &str) {
    writeln!(std::io::stderr().lock(), "troupe: {}", printable(text)).ok();
}

/// What is shown to people.
pub(super) enum Text {
    /// As it is.
    Plain(String),
    /// Columns.
    Table(Table),
    /// One after the other.
    Parts(Vec<Text>),
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Plain(text)
    }
}

impl From<Table> for Text {
    fn from(table: Table) -> Self {
        Self::Table(table)
    }
}

impl Text {
    pub(super) fn render(&self, colour: bool) -> String {
        match self {
            Self::Plain(text) => printable(text),
            Self::Table(table) => table.render(colour),
            Self::Parts(parts) => {
                let parts = parts.iter().map(|part| part.render(colour));
                parts.collect::<Vec<_>>().join("\n")
            }
        }
    }
}

/// Aligned columns.
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(head: [&'static str; N]) -> Self {
        Self {
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.head.len(), "a cell for each column");
        let cells = cells.into_iter().map(|cell| match cell.as_str() {
            "" => "-".to_owned(),
            text => printable(text).replace('\n', " "),
        });
        self.rows.push(cells.collect());
    }

    fn render(&self, colour: bool) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            let head = self.head[column].chars().count();
            cells.fold(head, usize::max)
        };
        let widths: Vec<_> = (0..self.head.len()).map(width).collect();
        let line = |cells: &[&str]| {
            let padded = cells.iter().zip(&widths);
            let padded = padded.map(|(cell, width)| format!("{cell:<width$}"));
            let line = padded.collect::<Vec<_>>().join("  ");
            line.trim_end().to_owned()
        };
        let head = line(&self.head);
        let head = match colour {
            true => format!("\x1b[1m{head}\x1b[0m"),
            false => head,
        };
        let rows = self.rows.iter().map(|row| {
            let cells: Vec<_> = row.iter().map(String::as_str).collect();
            line(&cells)
        });
        let lines = std::iter::once(head).chain(rows);
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// What came over the network must not drive the terminal: control characters are shown, not sent.
pub(super) fn printable(text: &str) -> String {
    let shown = text.chars().map(|c| match c {
        '\n' => c,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_the_network_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r"), "a\u{fffd}[2Jb\u{fffd}");
        let mut table = Table::new(["A", "LONG"]);
        table.row(["x\ny".to_owned(), String::new()]);
        assert_eq!(table.render(false), "A    LONG\nx y  -");
        assert!(table.render(true).starts_with("\x1b[1mA    LONG\x1b[0m\n"));
    }
}
