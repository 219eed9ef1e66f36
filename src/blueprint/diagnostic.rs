//! A problem with its place in the file, as people see it: file:line:column, the line, a caret, a hint.

use super::tree::Place;
use serde::Serialize;
use std::fmt;

/// Terminals are at least this wide.
const WIDTH: usize = 80;

/// One mistake. `line` and `column` count from 1; line 0 means that it has no place (a missing file, an object of the cluster).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    pub file: String,
    pub line: usize,
    pub column: usize,
    #[serde(skip)]
    pub width: usize,
    /// `spec.machines[0].count`; empty where a file as a whole is meant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The line as it stands in the file.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
}

/// Everything that is wrong, in the order of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Problems(pub Vec<Problem>);

impl Problem {
    /// A problem at `place` of a file with this content.
    pub fn at(file: &str, content: &str, place: Place, path: &str, message: String, hint: Option<String>) -> Problem {
        let source = if place.line == 0 { "" } else { content.lines().nth(place.line - 1).unwrap_or("") };
        // A line may be megabytes long; what is kept stays near the caret.
        let source = if source.len() > 4096 { "" } else { source };
        Problem {
            file: file.into(),
            line: place.line,
            column: place.column,
            width: place.width.max(1),
            path: path.into(),
            message,
            hint,
            source: source.into(),
        }
    }
}

impl std::error::Error for Problems {}

/// "1 machine", "2 machines": for every count that people read.
pub fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

impl From<Problems> for crate::error::Error {
    fn from(problems: Problems) -> Self {
        let file = problems.0.first().map_or("the blueprint", |problem| &problem.file);
        let message = format!("could not use {file}: {}", counted(problems.0.len(), "problem"));
        crate::error::Error::input(message).because(problems)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            problem.fmt(out)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    /// Several lines, each ended.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        wrapped(out, "error: ", &self.message)?;
        if self.line == 0 {
            writeln!(out, " --> {}{}{}", printable(&self.file), if self.path.is_empty() { "" } else { ": " }, printable(&self.path))?;
        } else {
            writeln!(out, " --> {}:{}:{}", printable(&self.file), self.line, self.column)?;
        }
        if !self.source.trim().is_empty() {
            let number = self.line.to_string();
            let margin = " ".repeat(number.len());
            let (shown, caret_at) = self.window(WIDTH - number.len() - 4);
            let carets = self.width.min(shown.chars().count().saturating_sub(caret_at)).max(1);
            writeln!(out, "{margin} |")?;
            writeln!(out, "{number} | {shown}")?;
            writeln!(out, "{margin} | {}{}", " ".repeat(caret_at), "^".repeat(carets))?;
        }
        if let Some(hint) = &self.hint {
            wrapped(out, " hint: ", hint)?;
        }
        Ok(())
    }
}

impl Problem {
    /// The part of the line that fits `room` with the caret in it, and where the caret stands there.
    fn window(&self, room: usize) -> (String, usize) {
        let letters: Vec<char> = printable(&self.source).chars().collect();
        let caret = self.column.saturating_sub(1).min(letters.len());
        if letters.len() <= room {
            return (letters.into_iter().collect::<String>().trim_end().to_string(), caret);
        }
        let start = caret.saturating_sub(room / 3).min(letters.len() - room.min(letters.len()));
        let end = (start + room).min(letters.len());
        let mut part: Vec<char> = letters[start..end].to_vec();
        if start > 0 {
            part[..3].fill('.');
        }
        if end < letters.len() {
            let length = part.len();
            part[length - 3..].fill('.');
        }
        (part.into_iter().collect(), caret - start)
    }
}

/// What may reach a terminal: a file's own escape sequences may not. One character stays one character, so columns hold.
fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| {
            if letter == '\t' {
                ' '
            } else if letter.is_control() {
                '\u{fffd}'
            } else {
                letter
            }
        })
        .collect()
}

/// `text` after `label`, broken between words so that it fits; further lines are indented below the first.
fn wrapped(out: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    out.write_str(label)?;
    let mut column = label.len();
    for (index, word) in printable(text).split(' ').enumerate() {
        let length = word.chars().count();
        if index > 0 {
            if column + 1 + length > WIDTH {
                write!(out, "\n{:width$}", "", width = label.len())?;
                column = label.len();
            } else {
                out.write_str(" ")?;
                column += 1;
            }
        }
        out.write_str(word)?;
        column += length;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(line: &str, column: usize, width: usize) -> Problem {
        let place = Place { line: 7, column, width };
        let content = format!("{}{line}\n", "\n".repeat(6));
        Problem::at(
            "shop.yaml",
            &content,
            place,
            "spec",
            "unknown field `machinez` in `spec`".into(),
            Some("did you mean `machines`?".into()),
        )
    }

    #[test]
    fn a_problem_shows_its_line_and_points_at_the_place() {
        let expected = "error: unknown field `machinez` in `spec`\n --> shop.yaml:7:3\n  |\n7 |   machinez: 3\n  |   ^^^^^^^^\n hint: did you mean `machines`?\n";
        assert_eq!(problem("  machinez: 3", 3, 8).to_string(), expected);
    }

    #[test]
    fn long_lines_are_cut_around_the_caret_and_never_wider_than_a_terminal() {
        for column in [1, 30, 100, 199, 200, 5000] {
            let line: String = (0..200).map(|index| char::from(b'a' + (index % 26) as u8)).collect();
            let mut problem = problem(&line, column, 400);
            problem.message = "words and words ".repeat(20);
            let text = problem.to_string();
            assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
            assert!(text.contains('^'), "{text}");
        }
    }

    #[test]
    fn a_file_cannot_send_escape_sequences_to_the_terminal() {
        let text = problem("  \u{1b}[31mred\u{7}", 3, 1).to_string();
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
    }

    #[test]
    fn problems_are_json_too() {
        let json = serde_json::to_value(Problems(vec![problem("  machinez: 3", 3, 8)])).expect("plain data");
        assert_eq!(
            json,
            serde_json::json!([{"file": "shop.yaml", "line": 7, "column": 3, "path": "spec", "message": "unknown field `machinez` in `spec`",
                "hint": "did you mean `machines`?", "source": "  machinez: 3"}])
        );
    }
}
