//! Errors of the configuration: a place, what is wrong, and the cure.

use std::fmt;
use std::io;
use std::ops::Range;

use super::Source;
use crate::name::NameError;

/// How alike two words must be (Jaro-Winkler, 0 to 1) for one to be suggested in place of the other, if more than one
/// letter is wrong, missing or in another's place.
const ALIKE: f64 = 0.8;

/// A place in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file's path.
    pub path: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
}

impl Place {
    pub(super) fn new(source: &Source, span: Range<usize>) -> Self {
        let before = source.text.get(..span.start).unwrap_or(&source.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self { path: source.path.clone(), line, column }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path, self.line, self.column)
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {}{message}", if key.is_empty() { String::new() } else { format!("{key}: ") })]
pub struct ConfigError {
    /// Where.
    pub place: Place,
    /// The dotted key, such as `volume.scratch.mount`; empty for an error of syntax.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// How to put it right.
    pub hint: Option<String>,
}

impl ConfigError {
    pub(super) fn new(source: &Source, key: &str, span: Range<usize>, message: impl Into<String>) -> Self {
        Self { place: Place::new(source, span), key: key.to_owned(), message: message.into(), hint: None }
    }

    pub(super) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(super) fn unreadable(path: &str, error: &io::Error) -> Self {
        let place = Place { path: path.to_owned(), line: 1, column: 1 };
        let hint = Some("it must be a readable file of UTF-8 text".to_owned());
        Self { place, key: String::new(), message: format!("cannot be read: {error}"), hint }
    }

    pub(super) fn from_name(source: &Source, key: &str, span: Range<usize>, error: &NameError) -> Self {
        Self::new(source, key, span, error.to_string()).with_hint(error.hint())
    }

    pub(super) fn unknown_key(source: &Source, key: &str, span: Range<usize>, known: &[&str]) -> Self {
        let last = key.rsplit('.').next().unwrap_or(key);
        Self::new(source, key, span, "there is no such key").with_hint(suggestion(last, known))
    }

    /// An error of the TOML parser or of serde's, below the key `at`.
    pub(super) fn from_toml(source: &Source, at: &str, error: &toml::de::Error) -> Self {
        let span = error.span().unwrap_or(0..0);
        let message = error.message().lines().next().unwrap_or_default();
        // serde has no type for this one, only these words: "unknown field `a`, expected one of `b`, `c`".
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        match quoted.split_first() {
            Some((unknown, known)) if message.starts_with("unknown field") => {
                Self::unknown_key(source, &format!("{at}.{unknown}"), span, known)
            }
            _ => {
                let error = Self::new(source, at, span, message);
                Self { hint: type_hint(message).map(str::to_owned), ..error }
            }
        }
    }
}

/// How the type that serde expected is written in TOML.
fn type_hint(message: &str) -> Option<&'static str> {
    let (_, expected) = message.rsplit_once("expected ")?;
    match expected {
        "a boolean" => Some("write true or false, without quotes"),
        "a string" => Some("write it in quotes"),
        "i64" | "an integer" => Some("write a number, without quotes"),
        "a sequence" => Some("write a list: [\"…\", \"…\"]"),
        "a table" | "a map" => Some("write a table: { name = \"…\" }"),
        _ => None,
    }
}

/// "did you mean", or the list of what there is.
pub(super) fn suggestion(word: &str, known: &[&str]) -> String {
    let best = known
        .iter()
        .map(|candidate| match strsim::osa_distance(word, candidate) {
            0 | 1 => (1.0, candidate),
            _ => (strsim::jaro_winkler(word, candidate), candidate),
        })
        .max_by(|one, other| one.0.total_cmp(&other.0));
    match best {
        Some((alike, candidate)) if alike >= ALIKE => format!("did you mean `{candidate}`?"),
        _ => format!("it can be one of: {}", known.join(", ")),
    }
}
