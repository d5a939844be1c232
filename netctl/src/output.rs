//! Tables for people, JSON and bare names for scripts.

use std::{
    io::{self, IsTerminal, Write},
    str::FromStr,
};

use clap::ValueEnum;
use model::{ApiError, Code};
use serde::Serialize;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// Columns.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// What netd answered.
    Json,
    /// Names alone.
    Name,
}

/// Where and how answers are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) color: bool,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        // https://no-color.org: any value but the empty one.
        let asked_not_to = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let color = io::stdout().is_terminal() && !asked_not_to;
        Output { format, color }
    }

    /// Prints a list.
    pub(crate) fn table(&self, table: &Table, filters: &[Filter]) -> Result<(), ApiError> {
        stdout(&table.render(*self, filters)?)
    }

    /// Prints what a verb did: a sentence, the name of the thing, or the answer as it came.
    pub(crate) fn done(&self, sentence: &str, name: &str, answer: &impl Serialize) -> Result<(), ApiError> {
        match self.format {
            Format::Json => self.json(answer),
            Format::Name => stdout(&format!("{name}\n")),
            Format::Table | Format::Wide => stdout(&format!("{}\n", sentence.trim_end())),
        }
    }

    /// Prints one thing in full, as JSON, or its name.
    pub(crate) fn one(&self, name: &str, answer: &impl Serialize) -> Result<(), ApiError> {
        match self.format {
            Format::Name => stdout(&format!("{name}\n")),
            _ => self.json(answer),
        }
    }

    fn json(&self, answer: &impl Serialize) -> Result<(), ApiError> {
        stdout(&json(answer)?)
    }
}

fn json(answer: &impl Serialize) -> Result<String, ApiError> {
    let mut text = serde_json::to_string_pretty(answer)
        .map_err(|e| ApiError::new(Code::Internal, format!("the answer cannot be written as JSON: {e}"), ""))?;
    text.push('\n');
    Ok(text)
}

/// One JSON object on a line.
pub(crate) fn line(answer: &impl Serialize) -> Result<String, ApiError> {
    let text = serde_json::to_string(answer);
    text.map(|t| t + "\n")
        .map_err(|e| ApiError::new(Code::Internal, format!("the answer cannot be written as JSON: {e}"), ""))
}

/// Writes to standard output. A reader that went away (`netctl ... | head`) is no error.
pub(crate) fn stdout(text: &str) -> Result<(), ApiError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(ApiError::new(
            Code::Internal,
            format!("cannot write to standard output: {e}"),
            "df -h",
        )),
        _ => Ok(()),
    }
}

/// Writes to standard error; there is nobody to tell when that fails.
pub(crate) fn stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// How a cell should strike the eye.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    /// Like any other.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// On its way, or not in use.
    Warn,
    /// Broken.
    Bad,
}

/// Wraps text in the colour of its tone.
pub(crate) fn paint(text: &str, tone: Tone, color: bool) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Warn => "33",
        Tone::Bad => "31",
        Tone::Plain => return text.to_owned(),
    };
    if color {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// A cell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn toned(text: impl ToString, tone: Tone) -> Self {
        Cell {
            text: text.to_string(),
            tone,
        }
    }
}

/// An empty cell is shown as a dash, so that columns can be cut by blanks.
pub(crate) fn cell(text: impl ToString) -> Cell {
    Cell::toned(text, Tone::Plain)
}

/// A cell for what may be unknown.
pub(crate) fn maybe<T: ToString>(value: Option<T>) -> Cell {
    cell(value.map(|v| v.to_string()).unwrap_or_default())
}

/// A column: its heading, in lower case also its key for `--filter`; whether only `-o wide` shows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    head: &'static str,
    wide: bool,
}

/// A column that is always shown.
pub(crate) const fn column(head: &'static str) -> Column {
    Column { head, wide: false }
}

/// A column of `-o wide`.
pub(crate) const fn wide(head: &'static str) -> Column {
    Column { head, wide: true }
}

#[derive(Debug)]
struct Row {
    name: String,
    cells: Vec<Cell>,
    json: serde_json::Value,
}

/// A list of things.
#[derive(Debug)]
pub(crate) struct Table {
    columns: &'static [Column],
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new(columns: &'static [Column]) -> Self {
        Table {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row with a cell for each column; `thing` is what `-o json` prints.
    pub(crate) fn row(&mut self, name: impl ToString, cells: Vec<Cell>, thing: &impl Serialize) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(Row {
            name: name.to_string(),
            cells,
            json: serde_json::to_value(thing).unwrap_or_default(),
        });
    }

    /// The text of the list.
    pub(crate) fn render(&self, out: Output, filters: &[Filter]) -> Result<String, ApiError> {
        let wanted: Vec<(usize, &str)> = filters
            .iter()
            .map(|f| self.position(f).map(|at| (at, f.value.as_str())))
            .collect::<Result<_, _>>()?;
        let rows: Vec<&Row> = self
            .rows
            .iter()
            .filter(|r| wanted.iter().all(|(at, v)| fits(r.cells.get(*at), v)))
            .collect();
        match out.format {
            Format::Json => json(&rows.iter().map(|r| &r.json).collect::<Vec<_>>()),
            Format::Name => Ok(rows.iter().map(|r| format!("{}\n", r.name)).collect()),
            Format::Table => Ok(self.text(&rows, false, out.color)),
            Format::Wide => Ok(self.text(&rows, true, out.color)),
        }
    }

    fn position(&self, filter: &Filter) -> Result<usize, ApiError> {
        let at = self
            .columns
            .iter()
            .position(|c| c.head.eq_ignore_ascii_case(&filter.key));
        at.ok_or_else(|| {
            let keys: Vec<String> = self.columns.iter().map(|c| c.head.to_lowercase()).collect();
            ApiError::new(
                Code::Invalid,
                format!("there is no column {:?} to filter by", filter.key),
                format!("--filter with one of: {}", keys.join(", ")),
            )
        })
    }

    fn text(&self, rows: &[&Row], all: bool, color: bool) -> String {
        let shown: Vec<(usize, &Column)> = self
            .columns
            .iter()
            .enumerate()
            .filter(|(_, c)| all || !c.wide)
            .collect();
        let width = |at: usize, head: &str| {
            let cells = rows.iter().filter_map(|r| r.cells.get(at));
            cells
                .map(|c| c.text.chars().count())
                .chain([head.chars().count()])
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = shown.iter().map(|(at, c)| width(*at, c.head)).collect();
        let line = |cells: Vec<(&str, Tone)>| {
            let mut line = String::new();
            let mut blanks = 0;
            for ((text, tone), width) in cells.into_iter().zip(&widths) {
                let text = if text.is_empty() { "-" } else { text };
                line.extend(std::iter::repeat_n(' ', blanks));
                line.push_str(&paint(text, tone, color));
                // No blanks at the end of a line.
                blanks = width.saturating_sub(text.chars().count()) + 2;
            }
            line.push('\n');
            line
        };
        let heads = shown.iter().map(|(_, c)| (c.head, Tone::Plain)).collect();
        let mut out = line(heads);
        for row in rows {
            let cells = shown.iter().filter_map(|(at, _)| row.cells.get(*at));
            out.push_str(&line(cells.map(|c| (c.text.as_str(), c.tone)).collect()));
        }
        out
    }
}

/// `column=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    key: String,
    value: String,
}

impl FromStr for Filter {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('=') {
            Some((k, v)) if !k.is_empty() => Ok(Filter {
                key: k.to_owned(),
                value: v.to_owned(),
            }),
            _ => Err(format!("{s:?} is not COLUMN=VALUE; try: --filter health=ready")),
        }
    }
}

/// Whether a cell is the value, or a list that holds it.
fn fits(cell: Option<&Cell>, value: &str) -> bool {
    // The asterisk marks this node and is no part of its id.
    let text = cell.map(|c| c.text.trim_end_matches('*')).unwrap_or_default();
    text.eq_ignore_ascii_case(value)
        || text
            .split([',', ' '])
            .any(|part| !part.is_empty() && part.eq_ignore_ascii_case(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[column("NAME"), column("PORTS"), wide("VERSION")];

    fn table() -> Table {
        let mut t = Table::new(COLUMNS);
        t.row("web", vec![cell("web"), cell("80/tcp, 53/udp"), cell("1")], &"web");
        t.row("a-long-name", vec![cell("a-long-name"), cell(""), cell("2")], &"a");
        t
    }

    fn out(format: Format) -> Output {
        Output { format, color: false }
    }

    #[test]
    fn formats() {
        let t = table();
        assert_eq!(
            t.render(out(Format::Table), &[]).unwrap(),
            "NAME         PORTS\nweb          80/tcp, 53/udp\na-long-name  -\n"
        );
        assert!(t.render(out(Format::Wide), &[]).unwrap().contains("VERSION"));
        assert_eq!(t.render(out(Format::Name), &[]).unwrap(), "web\na-long-name\n");
        assert_eq!(t.render(out(Format::Json), &[]).unwrap(), "[\n  \"web\",\n  \"a\"\n]\n");
    }

    #[test]
    fn filters_pick_rows_and_unknown_keys_are_usage_errors() {
        let t = table();
        let names = |f: &str| t.render(out(Format::Name), &[f.parse().unwrap()]);
        assert_eq!(names("name=WEB").unwrap(), "web\n");
        assert_eq!(names("ports=53/udp").unwrap(), "web\n");
        assert_eq!(names("version=2").unwrap(), "a-long-name\n");
        assert_eq!(names("name=x").unwrap(), "");
        let e = names("colour=red").unwrap_err();
        assert_eq!((e.code, e.code.exit()), (Code::Invalid, 2));
        assert!(e.hint.contains("name, ports, version"));
        assert!("health".parse::<Filter>().is_err());
    }

    #[test]
    fn colours_only_where_asked_for() {
        assert_eq!(paint("x", Tone::Bad, false), "x");
        assert_eq!(paint("x", Tone::Bad, true), "\x1b[31mx\x1b[0m");
        assert_eq!(paint("x", Tone::Plain, true), "x");
    }
}
