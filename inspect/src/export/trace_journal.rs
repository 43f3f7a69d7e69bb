//! The journal's tracks of a timeline: what this side was, going live, transfers, acknowledgements, releases, and
//! counters of the three delays.
//!
//! The time axis is the log's, guest time: host time is placed on it by the last record seen
//! (`journal::clock`); `host_us` is the host time itself. Slices of one track never overlap.

#![forbid(unsafe_code)]

use super::trace::{TraceWriter, Track};
use crate::journal::clock::GuestClock;
use crate::journal::{JournalReport, RunReader, words};
use logging_channel::journal::{Entry, Happening, Histogram, Interval, Role, What};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::Path;

const TRACKS: [(Track, &str); 5] = [
    (Track::Role, "role of this side"),
    (Track::GoingLive, "going live"),
    (Track::Transfers, "transfers"),
    (Track::Acks, "acknowledgements"),
    (Track::Released, "output released"),
];

/// What has begun and not ended.
#[derive(Debug)]
struct Open {
    track: Track,
    name: String,
    from_us: u64,
    host_us: u64,
}

/// Places entries on the axis.
#[derive(Debug, Default)]
struct Placer {
    clock: GuestClock,
    /// Guest times that are wanted.
    within: Option<(u64, u64)>,
    open: Vec<Open>,
    last_us: u64,
}

impl<W: Write> TraceWriter<W> {
    /// Adds the journal beside the log in `dir`: all of it, or what lies `within` two guest times,
    /// microseconds. Without a journal nothing is added.
    ///
    /// # Errors
    /// When the journal cannot be read or the file not be written.
    pub fn journal(&mut self, dir: &Path, within: Option<(u64, u64)>) -> io::Result<()> {
        let Some(mut run) = RunReader::open(dir)? else {
            return Ok(());
        };
        for (track, name) in TRACKS {
            self.describe(track, name)?;
        }
        let mut placer = Placer {
            within,
            ..Placer::default()
        };
        while let Some(entry) = run.next_entry()? {
            placer.entry(self, run.report(), &entry)?;
        }
        for open in std::mem::take(&mut placer.open) {
            placer.close(self, open, placer.last_us)?;
        }
        Ok(())
    }
}

impl Placer {
    fn entry<W: Write>(
        &mut self,
        out: &mut TraceWriter<W>,
        report: &JournalReport,
        entry: &Entry,
    ) -> io::Result<()> {
        let at_us = entry.at_us;
        if let What::Interval(interval) = &entry.what {
            // Its samples lie before its end, and are placed by what is known there.
            self.clock.see(entry);
            self.interval(out, at_us, interval)?;
        }
        self.clock.see(entry);
        self.last_us = self.clock.guest_time_us(at_us);
        match &entry.what {
            What::Role(standing) => {
                let name = format!(
                    "{}, generation {}",
                    standing.role.title(),
                    standing.generation
                );
                let same = |open: &Open| open.track == Track::Role && open.name == name;
                if !self.open.iter().any(same) {
                    self.end(out, Track::Role, at_us)?;
                    self.begin(Track::Role, name, at_us);
                    let going = matches!(
                        standing.role,
                        Role::Finishing | Role::GoingLive | Role::Contested
                    );
                    if !going {
                        self.end(out, Track::GoingLive, at_us)?;
                    }
                }
                Ok(())
            }
            What::Happened(happening) => self.happened(out, report, at_us, happening),
            What::Begun(_) | What::Interval(_) => Ok(()),
        }
    }

    fn happened<W: Write>(
        &mut self,
        out: &mut TraceWriter<W>,
        report: &JournalReport,
        at_us: u64,
        happening: &Happening,
    ) -> io::Result<()> {
        let name = words(happening);
        let track = match happening {
            Happening::TransferBegun { .. } => {
                self.end(out, Track::Transfers, at_us)?;
                self.begin(Track::Transfers, name, at_us);
                return Ok(());
            }
            Happening::TransferDone { .. } | Happening::TransferFailed { .. } => {
                self.end(out, Track::Transfers, at_us)?;
                Track::Transfers
            }
            Happening::HandingOver => Track::Transfers,
            Happening::Suspected { silence_us } => {
                let (from, host) = (at_us.saturating_sub(*silence_us), Track::GoingLive);
                self.end(out, host, at_us)?;
                self.begin(host, "peer silent".to_owned(), from);
                self.end(out, host, at_us)?;
                self.begin(host, "finish the log".to_owned(), at_us);
                host
            }
            Happening::Claiming {
                generation,
                attempt: 1,
            } => {
                self.end(out, Track::GoingLive, at_us)?;
                self.begin(
                    Track::GoingLive,
                    format!("claim of generation {generation}"),
                    at_us,
                );
                Track::GoingLive
            }
            Happening::Granted { .. } => {
                self.end(out, Track::GoingLive, at_us)?;
                Track::GoingLive
            }
            _ => Track::GoingLive,
        };
        let args = json!({"holder": report.holder});
        self.instant(out, track, &name, at_us, args)
    }

    fn interval<W: Write>(
        &mut self,
        out: &mut TraceWriter<W>,
        at_us: u64,
        interval: &Interval,
    ) -> io::Result<()> {
        let began_us = at_us.saturating_sub(interval.us);
        for ack in &interval.acks {
            let at_us = began_us.saturating_add(ack.after_us);
            let pointers = json!({"received": ack.received, "replayed": ack.replayed});
            self.counter(out, "acknowledged records", at_us, &pointers)?;
            self.instant(out, Track::Acks, "ack", at_us, pointers)?;
        }
        let mut releases = interval.releases.clone();
        releases.sort_by_key(|release| release.after_us);
        for release in releases {
            let at_us = began_us.saturating_add(release.after_us);
            let waited_ms = release.waited_us as f64 / 1e3;
            self.counter(out, "gate delay, ms", at_us, &json!({"waited": waited_ms}))?;
            let args = json!({"record": release.index, "waited_us": release.waited_us});
            self.instant(out, Track::Released, "released", at_us, args)?;
        }
        for (name, delays) in [
            ("lag, ms", &interval.lag),
            ("acknowledgement, ms", &interval.acknowledged),
        ] {
            if !delays.is_empty() {
                self.counter(out, name, at_us, &in_ms(delays))?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, track: Track, name: String, host_us: u64) {
        self.open.push(Open {
            track,
            name,
            from_us: self.clock.guest_time_us(host_us),
            host_us,
        });
    }

    fn end<W: Write>(
        &mut self,
        out: &mut TraceWriter<W>,
        track: Track,
        host_us: u64,
    ) -> io::Result<()> {
        let until_us = self.clock.guest_time_us(host_us);
        while let Some(at) = self.open.iter().position(|open| open.track == track) {
            let open = self.open.remove(at);
            self.close(out, open, until_us)?;
        }
        Ok(())
    }

    fn close<W: Write>(
        &self,
        out: &mut TraceWriter<W>,
        open: Open,
        until_us: u64,
    ) -> io::Result<()> {
        let (mut from, mut until) = (open.from_us, until_us.max(open.from_us));
        if let Some((first, last)) = self.within {
            if until < first || from > last {
                return Ok(());
            }
            (from, until) = (from.max(first), until.min(last));
        }
        out.event(
            &json!({"ph": "X", "name": open.name, "pid": 1, "tid": open.track as usize, "ts": from,
            "dur": until - from, "args": {"host_us": open.host_us}}),
        )
    }

    fn instant<W: Write>(
        &self,
        out: &mut TraceWriter<W>,
        track: Track,
        name: &str,
        host_us: u64,
        mut args: Value,
    ) -> io::Result<()> {
        args["host_us"] = host_us.into();
        match self.wanted(host_us) {
            Some(ts) => out.event(&json!({"ph": "i", "s": "t", "name": name, "pid": 1,
                "tid": track as usize, "ts": ts, "args": args})),
            None => Ok(()),
        }
    }

    fn counter<W: Write>(
        &self,
        out: &mut TraceWriter<W>,
        name: &str,
        host_us: u64,
        values: &Value,
    ) -> io::Result<()> {
        match self.wanted(host_us) {
            Some(ts) => {
                out.event(&json!({"ph": "C", "name": name, "pid": 1, "ts": ts, "args": values}))
            }
            None => Ok(()),
        }
    }

    /// The guest time of `host_us`, if it is wanted.
    fn wanted(&self, host_us: u64) -> Option<u64> {
        let us = self.clock.guest_time_us(host_us);
        let inside = self
            .within
            .is_none_or(|(first, last)| first <= us && us <= last);
        inside.then_some(us)
    }
}

fn in_ms(delays: &Histogram) -> Value {
    let ms = |us: u64| us as f64 / 1e3;
    json!({"p50": ms(delays.quantile_us(500)), "max": ms(delays.max_us())})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests as journal_sample;

    fn trace(within: Option<(u64, u64)>) -> Vec<Value> {
        let dir = tempfile::tempdir().unwrap();
        journal_sample::write(dir.path(), "b.2");
        let mut writer = TraceWriter::new(Vec::new(), "web").unwrap();
        writer.journal(dir.path(), within).unwrap();
        let trace: Value = serde_json::from_slice(&writer.finish().unwrap()).unwrap();
        trace["traceEvents"].as_array().unwrap().clone()
    }

    fn of(events: &[Value], phase: &str, track: Track) -> Vec<(String, u64, u64)> {
        let of = events
            .iter()
            .filter(|event| event["ph"] == phase && event["tid"] == track as usize);
        let tuple = |event: &Value| {
            let number = |key: &str| event[key].as_u64().unwrap_or(0);
            (
                event["name"].as_str().unwrap().to_owned(),
                number("ts"),
                number("dur"),
            )
        };
        of.map(tuple).collect()
    }

    #[test]
    fn a_failover_has_its_tracks() {
        let events = trace(None);
        let roles = of(&events, "X", Track::Role);
        assert_eq!(roles.len(), 6);
        for pair in roles.windows(2) {
            assert!(pair[0].1 + pair[0].2 <= pair[1].1, "{pair:?} overlap");
        }
        let names: Vec<_> = of(&events, "X", Track::GoingLive)
            .into_iter()
            .map(|(name, ..)| name)
            .collect();
        assert_eq!(names, ["peer silent", "finish the log"]);
        assert_eq!(of(&events, "i", Track::Released).len(), 3);
        let counters = |name: &str| events.iter().filter(|event| event["name"] == name).count();
        assert_eq!(counters("gate delay, ms"), 3);
        assert_eq!(counters("lag, ms"), 2);
        assert_eq!(counters("acknowledgement, ms"), 0, "never measured");
    }

    #[test]
    fn a_range_leaves_out_what_lies_outside() {
        // The gate's samples lie at 1.85 s.
        assert_eq!(
            of(&trace(Some((1_800_000, 3_000_000))), "i", Track::Released).len(),
            3
        );
        let before = trace(Some((0, 200_000)));
        assert!(of(&before, "i", Track::Released).is_empty());
        assert!(
            of(&before, "X", Track::Role)
                .iter()
                .all(|(_, from, for_)| from + for_ <= 200_000)
        );
    }
}
