//! Observes a [`Node`] from outside, and says in journal entries what it saw.
//!
//! It is told every event before the node, every command after it, and the time of both; nothing it keeps
//! decides anything. A sample of the records is followed from their making (or arrival) to acknowledgement and
//! replay, every output from its making to its release.
//!
//! Invariants: queues, samples and the rate of entries are bounded; a release is never matched with another
//! output: where outputs were not followed, releases are counted only by their time.
//!
//! Left out: the file (`logging_channel::journal`), who writes it (`runtime::log_thread`).

#![forbid(unsafe_code)]

use super::engine::Emitted;
use super::node::{Node, NodeCommand, NodeEvent, Note};
use super::role::Role;
use logging_channel::host_time::HostTime;
use logging_channel::journal::entry::{self, ACKS_MAX, Ack, RELEASES_MAX, Release, Standing, text};
use logging_channel::journal::{Entry, Happening, Histogram, Interval, What};
use logging_channel::message::{self, Message};
use logging_channel::record::Record;
use std::collections::VecDeque;

/// Time between two intervals' ends.
const INTERVAL_NS: u64 = 250_000_000;
/// Least distance in time of two records that are followed.
const SAMPLE_NS_MIN: u64 = 1_000_000;
/// Records followed at a time; at one a millisecond, four seconds of lag.
const SAMPLES_MAX: usize = 4_096;
/// Outputs followed at a time; the gate holds fewer unless they are all tiny.
const OUTPUTS_MAX: usize = 65_536;
/// Happenings between two intervals; a storm of them is not kept.
const HAPPENINGS_MAX: usize = 64;

/// What is followed, and what was seen since the last interval.
#[derive(Debug)]
pub struct Observer {
    standing: Standing,
    began: Option<HostTime>,
    interval: Interval,
    happenings: usize,
    /// Made or arrived, and not known to be acknowledged; not known to be replayed.
    unacknowledged: VecDeque<(u64, HostTime)>,
    unreplayed: VecDeque<(u64, HostTime)>,
    /// Made and not released; and how many behind them are not followed.
    outputs: VecDeque<(u64, HostTime)>,
    not_followed: usize,
    heard: Option<HostTime>,
    released: Option<HostTime>,
    entries: Vec<Entry>,
}

impl Default for Observer {
    fn default() -> Self {
        Self {
            standing: Standing {
                role: entry::Role::Idle,
                generation: 0,
                next: 0,
                guest_time_us: 0,
                seen_us: 0,
            },
            began: None,
            interval: Interval::default(),
            happenings: 0,
            unacknowledged: VecDeque::new(),
            unreplayed: VecDeque::new(),
            outputs: VecDeque::new(),
            not_followed: 0,
            heard: None,
            released: None,
            entries: Vec::new(),
        }
    }
}

impl Observer {
    /// The node is about to handle `event`.
    pub fn event(&mut self, now: HostTime, event: &NodeEvent) {
        self.began.get_or_insert(now);
        match event {
            NodeEvent::Emitted(items) => items.iter().for_each(|item| self.emitted(now, item)),
            NodeEvent::PeerConnected => self.heard = Some(now),
            NodeEvent::PeerMessage(message) => self.message(now, message),
            _ => {}
        }
    }

    /// The node wants `command` done.
    pub fn command(&mut self, now: HostTime, command: &NodeCommand) {
        match command {
            NodeCommand::Release(_) => self.release(now),
            NodeCommand::BeginTransfer { attempt } => {
                self.happened(now, Happening::TransferBegun { attempt: *attempt });
            }
            NodeCommand::Halted { reason } => {
                let cause = text(&reason.to_string());
                self.happened(now, Happening::Halted { cause });
            }
            NodeCommand::Ended(reason) => {
                let reason = format!("{reason:?}");
                self.happened(now, Happening::Ended { reason });
            }
            NodeCommand::Note(note) => {
                if let Some(happening) = happening(note) {
                    self.happened(now, happening);
                }
            }
            _ => {}
        }
    }

    /// The node has handled the event: what there is to say.
    pub fn after(&mut self, now: HostTime, node: &Node) -> Vec<Entry> {
        let role = role(node.role());
        if (role, node.generation()) != (self.standing.role, self.standing.generation) {
            (self.standing.role, self.standing.generation) = (role, node.generation());
            self.say(now, What::Role(self.standing));
            match role {
                entry::Role::Solo | entry::Role::Following => self.unacknowledged.clear(),
                entry::Role::Ended | entry::Role::Halted => self.outputs.clear(),
                _ => {}
            }
            if role != entry::Role::Following {
                self.unreplayed.clear();
            }
        }
        if self
            .began
            .is_some_and(|began| now.since(began) >= INTERVAL_NS)
        {
            self.end_interval(now);
        }
        std::mem::take(&mut self.entries)
    }

    /// Nothing follows: what is left to say.
    pub fn finish(&mut self, now: HostTime) -> Vec<Entry> {
        self.end_interval(now);
        std::mem::take(&mut self.entries)
    }

    fn emitted(&mut self, now: HostTime, item: &Emitted) {
        match item {
            Emitted::Recorded { record, output } => {
                self.record(now, record);
                if self.standing.role == entry::Role::Protected {
                    follow(&mut self.unacknowledged, record.index.0, now);
                    follow(&mut self.unreplayed, record.index.0, now);
                }
                if output.is_some() {
                    if self.not_followed > 0 || self.outputs.len() >= OUTPUTS_MAX {
                        self.not_followed += 1;
                    } else {
                        self.outputs.push_back((record.index.0, now));
                    }
                }
            }
            Emitted::Replayed { next, .. } => {
                self.interval.replayed = next.0;
                pass(&mut self.unreplayed, next.0, now, &mut self.interval.lag);
            }
            _ => {}
        }
    }

    fn record(&mut self, now: HostTime, record: &Record) {
        self.standing.seen_us = now.0 / 1_000;
        self.standing.next = record.index.0.saturating_add(1);
        self.standing.guest_time_us = record.guest_time.as_micros();
    }

    fn message(&mut self, now: HostTime, message: &Message) {
        if let Some(heard) = self.heard.replace(now) {
            let gap_us = now.since(heard) / 1_000;
            self.interval.unheard_us = self.interval.unheard_us.max(gap_us);
        }
        match message {
            Message::Log(records) => {
                if let Some(last) = records.last() {
                    self.record(now, last);
                    self.interval.received = self.standing.next;
                    follow(&mut self.unreplayed, last.index.0, now);
                }
            }
            Message::Ack(ack) => self.ack(now, ack),
            _ => {}
        }
    }

    fn ack(&mut self, now: HostTime, ack: &message::Ack) {
        let (received, replayed) = (ack.received.0, ack.replayed.0);
        let interval = &mut self.interval;
        pass(
            &mut self.unacknowledged,
            received,
            now,
            &mut interval.acknowledged,
        );
        pass(&mut self.unreplayed, replayed, now, &mut interval.lag);
        if (received, replayed) == (interval.received, interval.replayed) {
            return;
        }
        (interval.received, interval.replayed) = (received, replayed);
        if interval.acks.len() == ACKS_MAX {
            interval.acks.pop();
        }
        let after_us = self.began.map_or(0, |began| now.since(began) / 1_000);
        interval.acks.push(Ack {
            after_us,
            received,
            replayed,
        });
    }

    fn release(&mut self, now: HostTime) {
        if let Some(released) = self.released.replace(now) {
            let gap_us = now.since(released) / 1_000;
            self.interval.unreleased_us = self.interval.unreleased_us.max(gap_us);
        }
        let Some((index, made)) = self.outputs.pop_front() else {
            // A backup that goes live lets out what it did not make as a primary.
            self.not_followed = self.not_followed.saturating_sub(1);
            return;
        };
        if self.standing.role == entry::Role::Solo {
            // The gate is open.
            return;
        }
        let release = Release {
            after_us: self.began.map_or(0, |began| now.since(began) / 1_000),
            index,
            waited_us: now.since(made) / 1_000,
        };
        self.interval.gate.add(release.waited_us);
        let releases = &mut self.interval.releases;
        if releases.len() == RELEASES_MAX {
            let waits = releases.iter().enumerate();
            let shortest = waits.min_by_key(|(_, release)| release.waited_us);
            match shortest {
                Some((at, short)) if short.waited_us < release.waited_us => releases.remove(at),
                _ => return,
            };
        }
        releases.push(release);
    }

    fn happened(&mut self, now: HostTime, happening: Happening) {
        self.happenings += 1;
        if self.happenings <= HAPPENINGS_MAX {
            self.say(now, What::Happened(happening));
        }
    }

    fn end_interval(&mut self, now: HostTime) {
        let Some(began) = self.began.replace(now) else {
            return;
        };
        let next = Interval {
            received: self.interval.received,
            replayed: self.interval.replayed,
            ..Interval::default()
        };
        let mut ended = std::mem::replace(&mut self.interval, next);
        ended.us = now.since(began) / 1_000;
        ended.next = self.standing.next;
        ended.guest_time_us = self.standing.guest_time_us;
        ended.seen_us = self.standing.seen_us;
        self.happenings = 0;
        self.say(now, What::Interval(ended));
    }

    fn say(&mut self, now: HostTime, what: What) {
        let at_us = now.0 / 1_000;
        self.entries.push(Entry { at_us, what });
    }
}

/// Follows the record, unless another was followed just before it.
fn follow(queue: &mut VecDeque<(u64, HostTime)>, index: u64, now: HostTime) {
    let spaced = queue
        .back()
        .is_none_or(|(_, last)| now.since(*last) >= SAMPLE_NS_MIN);
    if spaced && queue.len() < SAMPLES_MAX {
        queue.push_back((index, now));
    }
}

/// Everything below `next` has come through.
fn pass(
    queue: &mut VecDeque<(u64, HostTime)>,
    next: u64,
    now: HostTime,
    histogram: &mut Histogram,
) {
    while let Some((index, since)) = queue.front()
        && *index < next
    {
        histogram.add(now.since(*since) / 1_000);
        queue.pop_front();
    }
}

const fn role(role: Role) -> entry::Role {
    match role {
        Role::Idle => entry::Role::Idle,
        Role::Starting => entry::Role::Starting,
        Role::Awaiting => entry::Role::Awaiting,
        Role::Protected => entry::Role::Protected,
        Role::Contested => entry::Role::Contested,
        Role::Solo => entry::Role::Solo,
        Role::Joining => entry::Role::Joining,
        Role::Following => entry::Role::Following,
        Role::Finishing => entry::Role::Finishing,
        Role::GoingLive => entry::Role::GoingLive,
        Role::Ended => entry::Role::Ended,
        Role::Halted => entry::Role::Halted,
    }
}

/// What a note says in a journal; nothing where it is of no use afterwards.
fn happening(note: &Note) -> Option<Happening> {
    Some(match note {
        Note::Claiming { new, attempt } => Happening::Claiming {
            generation: *new,
            attempt: *attempt,
        },
        Note::ArbiterSilent { cause, .. } => Happening::ArbiterSilent { cause: text(cause) },
        Note::Granted { generation } => Happening::Granted {
            generation: *generation,
        },
        Note::StrayAnswer => return None,
        Note::BackupWelcomed { holder, .. }
        | Note::TransferBegins { holder }
        | Note::Following { holder, .. } => Happening::Paired { peer: text(holder) },
        Note::TransferDone { next, bytes } => Happening::TransferDone {
            next: next.0,
            bytes: *bytes,
        },
        Note::TransferFailed(cause) => Happening::TransferFailed { cause: text(cause) },
        Note::HandingOver => Happening::HandingOver,
        Note::PeerSuspected { silence_ns } => Happening::Suspected {
            silence_us: silence_ns / 1_000,
        },
        Note::PeerRecovered => Happening::Recovered,
        Note::LinkLost(end) => Happening::LinkLost {
            cause: text(&end.to_string()),
        },
        Note::PeerSaid(goodbye) => Happening::PeerSaid {
            goodbye: format!("{goodbye:?}"),
        },
        Note::Stalled { gap_ns } => Happening::Stalled {
            gap_us: gap_ns / 1_000,
        },
        Note::Drained { next } => Happening::Drained { next: next.0 },
        Note::Alone { released } => Happening::Alone {
            released: *released as u64,
        },
        Note::Recording => Happening::Recording,
    })
}

#[cfg(test)]
mod tests;
