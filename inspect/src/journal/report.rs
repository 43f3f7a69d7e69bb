//! One side's journal, summed up in one pass and bounded memory.

#![forbid(unsafe_code)]

use logging_channel::journal::entry::{Begun, Standing};
use logging_channel::journal::{Entry, Happening, Histogram, Interval, What};
use serde::Serialize;

/// Roles and happenings that a report lists; more are only counted.
const LISTED_MAX: usize = 1_000;

/// How long something took, in microseconds of host time. Quantiles are at most a sixteenth too high.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Delays {
    /// How often it was measured.
    pub count: u64,
    /// Half took no longer.
    pub p50_us: u64,
    /// Nine in ten.
    pub p90_us: u64,
    /// 99 in a hundred.
    pub p99_us: u64,
    /// 999 in a thousand.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Delays {
    fn of(histogram: &Histogram) -> Option<Self> {
        let quantile = |per_mille| histogram.quantile_us(per_mille);
        (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            p50_us: quantile(500),
            p90_us: quantile(900),
            p99_us: quantile(990),
            p999_us: quantile(999),
            max_us: histogram.max_us(),
        })
    }
}

/// A stretch in one role and generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoleSpan {
    /// What this side was.
    pub role: &'static str,
    /// Whether the guest ran here.
    pub live: bool,
    /// The generation held or followed.
    pub generation: u64,
    /// The other side, where it was known.
    pub peer: Option<String>,
    /// Host time since the run's beginning.
    pub from_us: u64,
    /// Until when; the last of all until the journal's end.
    pub to_us: u64,
    /// First record not in the log when it began.
    pub from_record: u64,
    /// First record not in the log when it ended.
    pub to_record: u64,
}

/// The longest time in which something did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HostSilence {
    /// How long.
    pub us: u64,
    /// Host time since the run's beginning at which it was over, or up to a quarter of a second later.
    pub until_us: u64,
    /// First record not in the log then.
    pub next_record: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Host time since the run's beginning.
    pub at_us: u64,
    /// What.
    pub what: String,
}

/// The report.
#[derive(Debug, Clone, Serialize)]
pub struct JournalReport {
    /// Whose journal it is: the name at the arbiter.
    pub holder: String,
    /// Wall clock of that host when the run began there, microseconds since 1970.
    pub wall_clock_us: u64,
    /// Host time covered.
    pub from_us: u64,
    /// Host time covered.
    pub to_us: u64,
    /// Bytes that could not be read.
    pub left_out_bytes: u64,
    /// Those of them that are damage, and not the end that was never synced.
    pub damaged_bytes: u64,
    /// What this side was.
    pub roles: Vec<RoleSpan>,
    /// What happened.
    pub events: Vec<Event>,
    /// Events that are not listed.
    pub events_not_listed: u64,
    /// From a record's making to its acknowledgement.
    pub acknowledgement: Option<Delays>,
    /// From a record's making, or arrival on a backup, to its replay.
    pub lag: Option<Delays>,
    /// From an output's making to its release.
    pub gate: Option<Delays>,
    /// Without a word of the peer.
    pub unheard: Option<HostSilence>,
    /// Without an output released.
    pub unreleased: Option<HostSilence>,
    #[serde(skip)]
    peer: Option<String>,
    #[serde(skip)]
    histograms: [Histogram; 3],
}

impl JournalReport {
    pub(super) fn new(begun: &Begun) -> Self {
        Self {
            holder: begun.holder.clone(),
            wall_clock_us: begun.wall_clock_us,
            from_us: u64::MAX,
            to_us: 0,
            left_out_bytes: 0,
            damaged_bytes: 0,
            roles: Vec::new(),
            events: Vec::new(),
            events_not_listed: 0,
            acknowledgement: None,
            lag: None,
            gate: None,
            unheard: None,
            unreleased: None,
            peer: None,
            histograms: Default::default(),
        }
    }

    pub(crate) fn is_of(&self, begun: &Begun) -> bool {
        (&self.holder, self.wall_clock_us) == (&begun.holder, begun.wall_clock_us)
    }

    /// Who ran the guest in `generation`, as far as this side knows.
    #[must_use]
    pub fn live_in(&self, generation: u64) -> Option<&str> {
        let of_it = |span: &&RoleSpan| span.generation == generation;
        if self.roles.iter().filter(of_it).any(|span| span.live) {
            return Some(&self.holder);
        }
        let followed = self.roles.iter().filter(of_it);
        let mut followed = followed.filter(|span| span.role == "backup");
        followed.find_map(|span| span.peer.as_deref())
    }

    pub(super) fn add(&mut self, entry: &Entry) {
        match &entry.what {
            // Repeated in each file: no time of its own.
            What::Begun(_) => return,
            What::Role(standing) => self.role(entry.at_us, standing),
            What::Happened(happening) => self.happened(entry.at_us, happening),
            What::Interval(interval) => self.interval(entry.at_us, interval),
        }
        self.from_us = self.from_us.min(entry.at_us);
        self.to_us = self.to_us.max(entry.at_us);
    }

    fn role(&mut self, at_us: u64, standing: &Standing) {
        let role = standing.role.title();
        if let Some(last) = self.roles.last_mut() {
            if (last.role, last.generation) == (role, standing.generation) {
                return;
            }
            (last.to_us, last.to_record) = (at_us, standing.next);
        }
        if self.roles.len() < LISTED_MAX {
            self.roles.push(RoleSpan {
                role,
                live: standing.role.is_live(),
                generation: standing.generation,
                peer: self.peer.clone(),
                from_us: at_us,
                to_us: at_us,
                from_record: standing.next,
                to_record: standing.next,
            });
        }
    }

    fn happened(&mut self, at_us: u64, happening: &Happening) {
        if let Happening::Paired { peer } = happening {
            self.peer = Some(peer.clone());
        }
        if self.events.len() < LISTED_MAX {
            let what = words(happening);
            self.events.push(Event { at_us, what });
        } else {
            self.events_not_listed += 1;
        }
    }

    fn interval(&mut self, at_us: u64, interval: &Interval) {
        if let Some(last) = self.roles.last_mut() {
            (last.to_us, last.to_record) = (at_us, interval.next);
        }
        let [acknowledgement, lag, gate] = &mut self.histograms;
        acknowledgement.merge(&interval.acknowledged);
        lag.merge(&interval.lag);
        gate.merge(&interval.gate);
        let longer = |longest: &mut Option<HostSilence>, us: u64| {
            if us > longest.map_or(0, |longest| longest.us) {
                *longest = Some(HostSilence {
                    us,
                    until_us: at_us,
                    next_record: interval.next,
                });
            }
        };
        longer(&mut self.unheard, interval.unheard_us);
        longer(&mut self.unreleased, interval.unreleased_us);
    }

    pub(super) fn conclude(&mut self) {
        self.from_us = self.from_us.min(self.to_us);
        let [acknowledgement, lag, gate] = &self.histograms;
        self.acknowledgement = Delays::of(acknowledgement);
        self.lag = Delays::of(lag);
        self.gate = Delays::of(gate);
    }
}

/// What happened, for people.
pub(crate) fn words(happening: &Happening) -> String {
    let ms = |us: u64| us as f64 / 1e3;
    match happening {
        Happening::Paired { peer } => format!("paired with {peer}"),
        Happening::Suspected { silence_us } => {
            format!("peer suspected after {:.3} ms of silence", ms(*silence_us))
        }
        Happening::Recovered => "peer heard again".to_owned(),
        Happening::LinkLost { cause } => format!("connection ended: {cause}"),
        Happening::Drained { next } => format!("log replayed to its end, record {next}"),
        Happening::Claiming {
            generation,
            attempt,
        } => format!("claims generation {generation}, attempt {attempt}"),
        Happening::ArbiterSilent { cause } => format!("no decision of the arbiter: {cause}"),
        Happening::Granted { generation } => format!("granted generation {generation}"),
        Happening::Alone { released } => format!("goes on alone, {released} outputs released"),
        Happening::Recording => "records the guest".to_owned(),
        Happening::Stalled { gap_us } => {
            format!("this process stood still for {:.3} ms", ms(*gap_us))
        }
        Happening::TransferBegun { attempt } => format!("transfer {attempt} begins"),
        Happening::TransferDone { next, bytes } => {
            format!("transfer done: {bytes} bytes, the log follows from record {next}")
        }
        Happening::TransferFailed { cause } => format!("transfer failed: {cause}"),
        Happening::HandingOver => "hands the guest over".to_owned(),
        Happening::PeerSaid { goodbye } => format!("peer said goodbye: {goodbye}"),
        Happening::Halted { cause } => format!("halted: {cause}"),
        Happening::Ended { reason } => format!("the guest ended: {reason}"),
    }
}
