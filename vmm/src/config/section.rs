//! Reads one section of a configuration file, key by key, with errors that a person can act on.
//!
//! Every error names the file, the line, the key, the value and the remedy. A key that nobody asked
//! for is an error too, with the nearest known key as a suggestion: a misspelt key must never be
//! taken for a default. Numbers are read as written, so that `512.0`, `"512"` and `0x200` are judged
//! by what stands in the file.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest value that an error repeats, characters.
const SHOWN_CHARS_MAX: usize = 60;

/// What is wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}; {remedy}", Place { file, line: *line })]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; none when the whole file is meant.
    pub line: Option<usize>,
    /// Section and key, such as `vm.memory_mib`; none when the whole file is meant.
    pub key: Option<String>,
    /// What is wrong: names the key and the value.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

struct Place<'a> {
    file: &'a Path,
    line: Option<usize>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

/// The text of a file, for places in errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'t> {
    pub(super) file: &'t Path,
    pub(super) text: &'t str,
}

impl Source<'_> {
    pub(super) fn line(&self, offset: usize) -> usize {
        let before = self
            .text
            .as_bytes()
            .get(..offset)
            .unwrap_or(self.text.as_bytes());
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    pub(super) fn error(
        &self,
        offset: Option<usize>,
        key: Option<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        ConfigError {
            file: self.file.into(),
            line: offset.map(|offset| self.line(offset)),
            key,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

/// One table of the file.
pub(super) struct Section<'t> {
    source: Source<'t>,
    name: &'static str,
    offset: Option<usize>,
    table: DeTable<'t>,
    asked: Vec<&'static str>,
}

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Found<T> {
    pub(super) value: T,
    key: String,
    shown: String,
    offset: usize,
}

impl<T> Found<T> {
    /// The error that this value has `problem`.
    pub(super) fn wrong(
        &self,
        source: Source<'_>,
        problem: impl fmt::Display,
        remedy: impl Into<String>,
    ) -> ConfigError {
        let problem = format!("{} = {} {problem}", self.key, self.shown);
        source.error(Some(self.offset), Some(self.key.clone()), problem, remedy)
    }

    pub(super) fn with<U>(&self, value: U) -> Found<U> {
        Found {
            value,
            key: self.key.clone(),
            shown: self.shown.clone(),
            offset: self.offset,
        }
    }
}

impl<'t> Section<'t> {
    /// Takes the table `name` out of `root`; an empty section when there is none.
    pub(super) fn take(
        source: Source<'t>,
        root: &mut DeTable<'t>,
        name: &'static str,
    ) -> Result<Self, ConfigError> {
        let Some((key, value)) = root.remove_entry(name) else {
            return Ok(Self {
                source,
                name,
                offset: None,
                table: DeTable::new(),
                asked: vec![],
            });
        };
        let offset = Some(key.span().start);
        match value.into_inner() {
            DeValue::Table(table) => Ok(Self {
                source,
                name,
                offset,
                table,
                asked: vec![],
            }),
            other => Err(source.error(
                offset,
                Some(name.into()),
                format!("{name} is {}, not a section", kind_of(&other)),
                format!("write it as a section: [{name}]"),
            )),
        }
    }

    /// Whether the file has this section.
    pub(super) const fn is_present(&self) -> bool {
        self.offset.is_some()
    }

    pub(super) const fn source(&self) -> Source<'t> {
        self.source
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn value(&mut self, key: &'static str) -> Option<Found<DeValue<'t>>> {
        self.asked.push(key);
        let value: Spanned<DeValue<'t>> = self.table.remove(key)?;
        let span = value.span();
        let shown = self.source.text.get(span.clone()).unwrap_or("");
        let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        let shown = match shown.char_indices().nth(SHOWN_CHARS_MAX) {
            Some((end, _)) => format!("{}...", &shown[..end]),
            None => shown,
        };
        let offset = span.start;
        Some(Found {
            value: value.into_inner(),
            key: self.key(key),
            shown,
            offset,
        })
    }

    /// The error that `key` is needed and absent.
    pub(super) fn missing(&self, key: &str, remedy: impl Into<String>) -> ConfigError {
        let problem = match self.offset {
            Some(_) => format!("{} is missing", self.key(key)),
            None => format!(
                "{} is missing, as is its section [{}]",
                self.key(key),
                self.name
            ),
        };
        self.source
            .error(self.offset, Some(self.key(key)), problem, remedy)
    }

    pub(super) fn text(
        &mut self,
        key: &'static str,
        remedy: &str,
    ) -> Result<Option<Found<String>>, ConfigError> {
        let Some(found) = self.value(key) else {
            return Ok(None);
        };
        match &found.value {
            DeValue::String(text) if text.contains('\0') => {
                Err(found.wrong(self.source, "contains a zero byte", remedy))
            }
            DeValue::String(text) => Ok(Some(found.with(text.clone().into_owned()))),
            other => {
                let problem = format!("is {}, not text", kind_of(other));
                Err(found.wrong(self.source, problem, remedy))
            }
        }
    }

    pub(super) fn texts(
        &mut self,
        key: &'static str,
        count_max: usize,
        remedy: &str,
    ) -> Result<Option<Found<Vec<String>>>, ConfigError> {
        let Some(found) = self.value(key) else {
            return Ok(None);
        };
        let DeValue::Array(items) = &found.value else {
            let problem = format!("is {}, not a list", kind_of(&found.value));
            return Err(found.wrong(self.source, problem, remedy));
        };
        if items.len() > count_max {
            let problem = format!("has {} entries, the limit is {count_max}", items.len());
            return Err(found.wrong(self.source, problem, remedy));
        }
        let mut texts = Vec::new();
        for item in items.iter() {
            match item.get_ref() {
                DeValue::String(text) => texts.push(text.clone().into_owned()),
                other => {
                    let problem = format!("has {} among its entries, not text", kind_of(other));
                    return Err(found.wrong(self.source, problem, remedy));
                }
            }
        }
        Ok(Some(found.with(texts)))
    }

    /// A whole number within `range`, or `default`.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        unit: &str,
        default: Option<u64>,
    ) -> Result<u64, ConfigError> {
        let remedy = format!(
            "give a whole number from {} to {}{unit}",
            range.start(),
            range.end()
        );
        let Some(found) = self.value(key) else {
            return default.ok_or_else(|| self.missing(key, remedy));
        };
        let DeValue::Integer(integer) = &found.value else {
            let problem = format!("is {}, not a whole number", kind_of(&found.value));
            return Err(found.wrong(self.source, problem, remedy));
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(found.wrong(self.source, "is out of range", remedy)),
        }
    }

    /// One of `choices` by name, or the default.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
        default: T,
    ) -> Result<T, ConfigError> {
        let names: Vec<_> = choices
            .iter()
            .map(|(name, _)| format!("{name:?}"))
            .collect();
        let remedy = format!("choose one of {}", names.join(", "));
        let Some(found) = self.text(key, &remedy)? else {
            return Ok(default);
        };
        match choices.iter().find(|(name, _)| *name == found.value) {
            Some((_, choice)) => Ok(*choice),
            None => Err(found.wrong(self.source, "is not known", remedy)),
        }
    }

    /// True or false, or `default`.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        let Some(found) = self.value(key) else {
            return Ok(default);
        };
        match &found.value {
            DeValue::Boolean(value) => Ok(*value),
            other => {
                let problem = format!("is {}, not true or false", kind_of(other));
                Err(found.wrong(self.source, problem, "write true or false, without quotes"))
            }
        }
    }

    /// Ends the section as [`Self::finish`], where further keys would have a meaning.
    pub(super) fn finish_hinting(mut self, further: &[&'static str]) -> Result<(), ConfigError> {
        self.asked.extend(further);
        self.finish()
    }

    /// Ends the section: every key that was not asked for is an error.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        let Some((key, _)) = self.table.iter().next() else {
            return Ok(());
        };
        let name = self.key(key.get_ref());
        Err(self.source.error(
            Some(key.span().start),
            Some(name.clone()),
            format!("there is no key {name}"),
            suggestion(key.get_ref(), &self.asked),
        ))
    }
}

/// Every table that is still in `root` is unknown.
pub(super) fn refuse_unknown_sections(
    source: Source<'_>,
    root: &DeTable<'_>,
    known: &[&str],
) -> Result<(), ConfigError> {
    let Some((key, value)) = root.iter().next() else {
        return Ok(());
    };
    let name = key.get_ref();
    let problem = match value.get_ref() {
        DeValue::Table(_) => format!("there is no section [{name}]"),
        _ => format!("the key {name} stands outside any section"),
    };
    let offset = Some(key.span().start);
    Err(source.error(
        offset,
        Some(name.to_string()),
        problem,
        suggestion(name, known),
    ))
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

fn suggestion(found: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|name| (distance(found, name), *name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4);
    match nearest {
        Some((_, name)) => format!("did you mean {name}?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// Levenshtein's edit distance; texts longer than any key of ours are as far as they are long.
fn distance(left: &str, right: &str) -> usize {
    const CHARS_MAX: usize = 64;
    let right: Vec<char> = right.chars().collect();
    if left.chars().nth(CHARS_MAX).is_some() {
        return CHARS_MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}
