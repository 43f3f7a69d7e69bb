//! Snapshots tried out on the way of a replay: saved at places of a log, each gone on from to the end.
//!
//! The replay that passes by stands still while a guest built of what it saved replays the rest of the log, on a
//! thread of its own (a processor and its counter belong to one). Every one of them must end as the replay does
//! itself, in counts, registers and memory; on its way it makes every check of a replay. The places are chosen at
//! random, by a seed, among those where the log has the guest settled.
//!
//! Left out: how a guest is saved and built (`snapshot_file`), the replay itself (`replay`).

use super::replay::{Nobody, Replay, ReplayOptions, ReplayReport};
use super::session::RuntimeError;
use inspect::place::Place;
use logging_channel::record::{Control, LogIndex, RecordBody};
use logging_channel::segment::reader::LogReader;
use std::path::Path;
use std::str::FromStr;
use std::thread::Builder;

/// A part of the places: every `of`-th from number `first` on, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The first.
    pub first: usize,
    /// Among how many the places are shared; at least 1.
    pub of: usize,
}

impl Share {
    /// Nobody else does anything.
    pub const ALL: Self = Self { first: 0, of: 1 };
}

/// Reads `1/2`, the first of two shares.
impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text}: a share is written as 1/2");
        let (number, of) = text.split_once('/').ok_or_else(wrong)?;
        let (number, of): (usize, usize) = (
            number.parse().map_err(|_| wrong())?,
            of.parse().map_err(|_| wrong())?,
        );
        match number {
            1.. if number <= of => Ok(Self {
                first: number - 1,
                of,
            }),
            _ => Err(wrong()),
        }
    }
}

/// What to try.
#[derive(Debug, Clone, Copy)]
pub struct TrialOptions {
    /// How many places.
    pub places: usize,
    /// Which.
    pub seed: u64,
    /// Of them only every so many-th, from one on: when several hosts share the work.
    pub share: Share,
    /// Sabotage for drills: a bit of memory of each guest differs from what was saved.
    pub spoiled: bool,
}

/// How a guest ended that went on from a snapshot.
#[derive(Debug, PartialEq, Eq)]
struct End {
    records: u64,
    exits: u64,
    guest_time_us: u64,
    how: Option<String>,
    registers_digest: u64,
    memory_digest: u64,
    divergence: Option<String>,
}

impl From<&ReplayReport> for End {
    fn from(report: &ReplayReport) -> Self {
        Self {
            records: report.records,
            exits: report.exits,
            guest_time_us: report.guest_time_us,
            how: report.end.clone(),
            registers_digest: report.registers_digest,
            memory_digest: report.memory_digest,
            divergence: report.divergence.clone(),
        }
    }
}

/// The places that are left, and the ends of the guests that went on from the others.
pub(super) struct Trials<'a> {
    directory: &'a Path,
    until: Option<Place>,
    spoiled: bool,
    /// Records right behind the places to come, descending.
    due: Vec<LogIndex>,
    /// By the record behind the place.
    ended: Vec<(LogIndex, End)>,
}

impl<'a> Trials<'a> {
    /// Chooses the places; none when nothing is to be tried.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) fn choose(options: &ReplayOptions<'a>) -> Result<Self, RuntimeError> {
        let (directory, until) = (options.directory, options.until);
        let mut trials = Self {
            directory,
            until,
            spoiled: false,
            due: Vec::new(),
            ended: Vec::new(),
        };
        if let Some(wanted) = &options.trials {
            let places = settled_places(directory, until)?;
            let some = some_of(places, wanted.places, wanted.seed);
            let Share { first, of } = wanted.share;
            trials.due = some.into_iter().skip(first).step_by(of).collect();
            trials.spoiled = wanted.spoiled;
        }
        Ok(trials)
    }

    /// The replay stands where the guest can be saved, before record `next`. Tries that if the place was chosen, or
    /// an earlier one that could not be saved.
    ///
    /// # Errors
    /// When it cannot be saved, or no guest be made of it.
    pub(super) fn at(&mut self, replay: &mut Replay, next: LogIndex) -> Result<(), RuntimeError> {
        if self.due.pop_if(|due| *due <= next).is_none() {
            return Ok(());
        }
        let (loaded, blueprint) = (replay.saved(next)?, replay.blueprint());
        let (directory, until, spoiled) = (self.directory, self.until, self.spoiled);
        let go_on = || {
            if spoiled {
                loaded.spoil();
            }
            let mut copy = Replay::begin_with_snapshot(directory, blueprint, loaded)?;
            copy.run(until, &mut Nobody)?;
            Ok::<_, RuntimeError>(End::from(&copy.report()?))
        };
        let end = std::thread::scope(|scope| {
            let thread = Builder::new().name("trial".to_owned());
            let thread = thread.spawn_scoped(scope, go_on);
            let thread = thread.map_err(|source| RuntimeError::Io {
                operation: "start a thread",
                source,
            })?;
            let joined = thread.join();
            // A broken invariant there is one of ours.
            joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        tracing::debug!(next = next.0, ?end, "gone on from a snapshot");
        self.ended.push((next, end));
        Ok(())
    }

    /// Says in the replay's report how many there were, and which one ended differently.
    pub(super) fn conclude(&self, report: &mut ReplayReport) {
        report.snapshots += self.ended.len() as u64;
        if report.divergence.is_none() {
            report.divergence = difference(&End::from(&*report), &self.ended);
        }
    }
}

/// The first end that is not like the replay's.
fn difference(straight: &End, ended: &[(LogIndex, End)]) -> Option<String> {
    let (next, end) = ended.iter().find(|(_, end)| end != straight)?;
    let next = next.0;
    Some(match &end.divergence {
        Some(divergence) => {
            format!("saved before record {next} and gone on from there: {divergence}")
        }
        None => format!(
            "saved before record {next} and gone on from there it ends with {end:?}, not {straight:?}"
        ),
    })
}

/// Where the guest can be saved: the records right behind those places, ascending.
fn settled_places(directory: &Path, until: Option<Place>) -> Result<Vec<LogIndex>, RuntimeError> {
    let mut places = Vec::new();
    let mut log = LogReader::open(directory);
    while let Some(record) = log.next_record()? {
        if until.is_some_and(|place| place.reached_by(&record)) {
            break;
        }
        if record.body == RecordBody::Control(Control::Settle) {
            places.push(record.index.next());
        }
    }
    Ok(places)
}

/// `count` of `places`, descending; all when there are no more.
fn some_of(mut places: Vec<LogIndex>, count: usize, seed: u64) -> Vec<LogIndex> {
    let mut state = seed;
    for chosen in 0..count.min(places.len()) {
        let left = (places.len() - chosen) as u64;
        // Below the length of a vector.
        let other = usize::try_from(random(&mut state) % left).unwrap_or(0);
        places.swap(chosen, chosen + other);
    }
    places.truncate(count);
    places.sort_unstable_by(|a, b| b.cmp(a));
    places
}

/// SplitMix64 (Steele, Lea, Flood 2014).
const fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end() -> End {
        End {
            records: 7,
            exits: 9,
            guest_time_us: 11,
            how: Some("PowerOff".to_owned()),
            registers_digest: 1,
            memory_digest: 2,
            divergence: None,
        }
    }

    #[test]
    fn the_one_that_ends_differently_is_named() {
        let mut ended = vec![(LogIndex(3), end()), (LogIndex(5), end())];
        assert_eq!(difference(&end(), &ended), None);
        ended[1].1.memory_digest = 3;
        let found = difference(&end(), &ended).unwrap();
        assert!(found.starts_with("saved before record 5"), "{found}");
        ended[0].1.divergence = Some("at record 4".to_owned());
        let found = difference(&end(), &ended).unwrap();
        assert!(found.ends_with("from there: at record 4"), "{found}");
    }

    #[test]
    fn shares_are_read_or_refused() {
        assert_eq!("1/1".parse(), Ok(Share::ALL));
        assert_eq!("2/3".parse(), Ok(Share { first: 1, of: 3 }));
        for text in ["", "1", "0/2", "3/2", "1/0", "a/2", "1/2/3"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }

    #[test]
    fn places_are_chosen_once_each_by_the_seed() {
        let all: Vec<LogIndex> = (0..50).map(LogIndex).collect();
        let some = some_of(all.clone(), 20, 1);
        assert_eq!(some.len(), 20);
        assert!(some.windows(2).all(|pair| pair[0] > pair[1]), "{some:?}");
        assert_eq!(some, some_of(all.clone(), 20, 1));
        assert_ne!(some, some_of(all.clone(), 20, 2));
        let mut few = some_of(all.clone(), 80, 1);
        few.reverse();
        assert_eq!(few, all);
    }
}
