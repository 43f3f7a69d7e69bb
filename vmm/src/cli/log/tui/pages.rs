//! Reads what the model wishes for.

#![forbid(unsafe_code)]

use super::Failure;
use super::model::{Model, Row, Wish};
use inspect::facts::Facts;
use inspect::filter::Filter;
use inspect::line::{HoleText, Text};
use inspect::place::{Place, Range};
use inspect::show::write_record;
use inspect::source::{Found, Step, WalkError, walk};
use inspect::theme::Theme;
use std::collections::VecDeque;
use std::path::Path;

/// Records looked through at first on the way back; with a filter that finds too few, eight times as many, and
/// so on.
const BACK_RECORDS: u64 = 4_096;

/// Fulfils every wish of `model`.
pub(super) fn serve(model: &mut Model, dir: &Path) -> Result<(), Failure> {
    while let Some((wish, rows)) = model.take_wish() {
        match wish {
            Wish::Detail(index) => model.detailed(detail(dir, index)?),
            Wish::From(place) => {
                let found = from(dir, place, model.filter.as_ref(), rows)?;
                model.loaded(wish, found);
            }
            Wish::Before(index) => {
                let found = before(dir, index, model.filter.as_ref(), rows)?;
                model.loaded(wish, found);
            }
        }
    }
    Ok(())
}

fn from(
    dir: &Path,
    place: Place,
    filter: Option<&Filter>,
    count: usize,
) -> Result<Vec<Row>, WalkError> {
    let mut rows = Vec::new();
    let range = Range {
        from: Some(place),
        to: None,
    };
    collect(dir, range, filter, |row| {
        rows.push(row);
        if rows.len() < count {
            Step::On
        } else {
            Step::Stop
        }
    })?;
    Ok(rows)
}

fn before(
    dir: &Path,
    index: u64,
    filter: Option<&Filter>,
    count: usize,
) -> Result<Vec<Row>, WalkError> {
    let mut records = BACK_RECORDS;
    loop {
        let first = index.saturating_sub(records);
        let mut rows = VecDeque::new();
        let range = Range {
            from: Some(Place::Index(first)),
            to: Some(Place::Index(index)),
        };
        collect(dir, range, filter, |row| {
            if rows.len() == count {
                rows.pop_front();
            }
            rows.push_back(row);
            Step::On
        })?;
        if rows.len() == count || first == 0 {
            return Ok(rows.into());
        }
        records = records.saturating_mul(8);
    }
}

/// Gives `take` a line for every record in `range` that passes, and for every hole behind its beginning.
fn collect(
    dir: &Path,
    range: Range,
    filter: Option<&Filter>,
    mut take: impl FnMut(Row) -> Step,
) -> Result<(), WalkError> {
    let mut inside = range.from == Some(Place::Index(0));
    walk(dir, range, |found| {
        Ok(match found {
            // On the way to the range; it belongs to an earlier screen.
            Found::Hole(_) if !inside => Step::On,
            Found::Hole(hole) => take(Row {
                record: None,
                line: HoleText(&hole, Theme::plain()).to_string(),
            }),
            Found::Record(placed, _) => {
                inside = true;
                let record = &placed.record;
                let facts = Facts::of(record);
                if filter.is_some_and(|filter| !filter.passes(&facts)) {
                    return Ok(Step::On);
                }
                let time_us = record.guest_time.as_micros();
                take(Row {
                    record: Some((record.index.0, facts.kind, time_us)),
                    line: Text(&facts, Theme::plain()).to_string(),
                })
            }
        })
    })
    .map(drop)
}

fn detail(dir: &Path, index: u64) -> Result<String, WalkError> {
    let mut text = Vec::new();
    let range = Range {
        from: Some(Place::Index(index)),
        to: None,
    };
    walk(dir, range, |found| match found {
        Found::Hole(_) => Ok(Step::On),
        Found::Record(placed, frame) => {
            write_record(&mut text, placed, frame, Theme::plain())?;
            Ok(Step::Stop)
        }
    })?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
