//! What every command prints: text for people, JSON or YAML for programs.

use std::fmt;
use std::io::Write;

use anyhow::{Result, bail};
use serde::Serialize;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
    Yaml,
}

/// Prints a value: `text` as a person reads it, or all of it for a program.
pub(crate) fn print<T: Serialize>(format: Format, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
    say(format_args!("{}", written(format, value, text)?))
}

/// What is printed of a value, without the newline at its end.
pub(crate) fn written<T: Serialize>(format: Format, value: &T, text: impl FnOnce(&T) -> String) -> Result<String> {
    let written = match format {
        Format::Text => text(value),
        Format::Json => serde_json::to_string_pretty(value)?,
        Format::Yaml => serde_yaml_ng::to_string(value)?,
    };
    Ok(written.trim_end().to_owned())
}

/// One line, or several, to standard output. A reader that went away (`| head`) is an error like any other.
pub(crate) fn say(line: fmt::Arguments<'_>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Rows of cells as columns, each as wide as its widest cell, two blanks between.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|cell| cell.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut head.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

impl std::str::FromStr for Format {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Format> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            "yaml" => Ok(Format::Yaml),
            other => bail!("'{other}' is no output format; there is text, json and yaml"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["n1".to_owned(), "vxlan".to_owned()], vec!["longer".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["NODE", "FABRIC"], &rows), "NODE    FABRIC\nn1      vxlan\nlonger  x");
    }
}
