//! One process on one host: its node, its clock, its guest, and the queues between them.

#![forbid(unsafe_code)]

use crate::guest::{Guest, identity};
use crate::relative::Relative;
use crate::sabotage::Sabotage;
use logging_channel::clock_agreement::ClockOffer;
use logging_channel::failure_detector::DetectorConfig;
use logging_channel::flow::FlowConfig;
use logging_channel::host_time::HostTime;
use logging_channel::record::ClockKind;
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use vmm::replication::engine::{Emitted, Offer};
use vmm::replication::go_live::RetryConfig;
use vmm::replication::node::{HaltReason, Node, NodeConfig, Part};
use vmm::replication::role::Role;

/// One second, the unit of all intervals here.
const UNIT_NS: u64 = 1_000_000_000;

/// How far a host's clock moves at a time: the longest that is no stall of its own. Two of them are
/// the timeout, and every other interval is due after one.
pub const TICK_NS: u64 = 3 * UNIT_NS;

/// Where a host's clock begins: later than the longest time that matters.
const ORIGIN: HostTime = HostTime(1_000 * UNIT_NS);

/// What became of a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It runs.
    Running,
    /// Its host lost power.
    Crashed,
    /// It halted, for this reason.
    Halted(HaltReason),
    /// The guest ended.
    Ended,
}

/// One run of one process.
#[derive(Clone)]
pub struct Host {
    /// Number among all processes of the run.
    pub life: u8,
    /// Number among the processes of this host.
    pub run: u8,
    /// What became of it.
    pub fate: Fate,
    /// The newest generation that this host has seen: kept in a file that outlives the process, not the
    /// host's power.
    pub mark: u64,
    /// Its clock.
    pub now: HostTime,
    /// The timer that is set.
    pub wake_at: Option<HostTime>,
    /// The state machine under test.
    pub node: Node,
    /// The guest, once it exists here.
    pub guest: Option<Guest>,
    /// From the node to the guest.
    pub offers: VecDeque<Offer>,
    /// From the guest to the node.
    pub reports: VecDeque<Vec<Emitted>>,
    /// The request at the arbiter that waits for its answer.
    pub request: Option<u8>,
    /// Requests made so far.
    pub requests: u8,
    /// A state that is not complete.
    pub loading: Vec<u8>,
    /// Incomplete states that were thrown away.
    pub unloads: u64,
    /// Index of the last output that left here.
    pub released: Option<u8>,
    /// Whether this process was ever part of a pair.
    pub paired: bool,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("life", &self.life)
            .field("fate", &self.fate)
            .field("role", &self.node.role())
            .field("guest", &self.guest)
            .field("offers", &self.offers)
            .field("reports", &self.reports)
            .field("request", &self.request)
            .field("released", &self.released)
            .finish()
    }
}

/// What is over has no future: only its fate counts.
impl Hash for Host {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.life, self.run, &self.fate, self.mark).hash(state);
        if self.fate != Fate::Running {
            return;
        }
        let mut relative = Relative::new(state, self.now);
        self.node.hash(&mut relative);
        self.wake_at.hash(&mut relative);
        (&self.guest, &self.offers, &self.reports).hash(&mut relative);
        (&self.loading, self.unloads).hash(&mut relative);
        (self.request, self.requests, self.released, self.paired).hash(&mut relative);
    }
}

/// The name under which run `run` on host `id` claims.
#[must_use]
pub fn holder(id: usize, run: u8, sabotage: Sabotage) -> String {
    match sabotage {
        Sabotage::ReuseName => format!("{id}"),
        _ => format!("{id}#{run}"),
    }
}

impl Host {
    /// A process that was just started, on a host that has seen generation `mark`; the primary's host is
    /// number 0.
    #[must_use]
    pub fn new(id: usize, run: u8, life: u8, mark: u64, sabotage: Sabotage) -> Self {
        let part = match id {
            0 => Part::Primary {
                after_generation: 0,
            },
            _ => Part::Backup,
        };
        let node = Node::new(NodeConfig {
            part,
            holder: holder(id, run, sabotage),
            identity: identity(),
            clocks: ClockOffer::Only(ClockKind::Exits),
            detector: DetectorConfig {
                heartbeat_interval_ns: 2 * UNIT_NS,
                timeout_ns: 6 * UNIT_NS,
            },
            flow: FlowConfig {
                lag_ns_max: u64::MAX,
                ..FlowConfig::default()
            },
            retry: RetryConfig {
                first_ns: UNIT_NS,
                pause_ns_max: UNIT_NS,
            },
            gate_bytes_max: 1 << 20,
            generation: 0,
            newest_generation: mark,
        });
        Self {
            life,
            run,
            fate: Fate::Running,
            mark,
            now: ORIGIN,
            wake_at: None,
            node,
            guest: None,
            offers: VecDeque::new(),
            reports: VecDeque::new(),
            request: None,
            requests: 0,
            loading: Vec::new(),
            unloads: 0,
            released: None,
            paired: false,
        }
    }

    /// Takes what is for the builder of a guest, and says what it reports; `None` for everything else.
    pub fn load(&mut self, offer: &Offer) -> Option<Option<Emitted>> {
        match offer {
            Offer::Load(part) => {
                self.loading.extend(part);
                let (unloads, bytes) = (self.unloads, part.len() as u64);
                return Some(Some(Emitted::Loaded { unloads, bytes }));
            }
            Offer::Unload => {
                self.loading.clear();
                self.unloads += 1;
            }
            Offer::Begin { .. } => {
                self.guest = Some(Guest::loaded(std::mem::take(&mut self.loading)));
            }
            _ => return None,
        }
        Some(None)
    }

    /// Its role, if it runs.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        (self.fate == Fate::Running).then(|| self.node.role())
    }

    /// Whether its guest may make a record now that the node takes at once.
    #[must_use]
    pub fn may_produce(&self) -> bool {
        self.fate == Fate::Running
            && self.guest.as_ref().is_some_and(Guest::is_recording)
            && self.offers.is_empty()
            && self.reports.is_empty()
            && self.node.accepts_emitted()
    }

    /// Whether its guest has produced little enough to be asked for more.
    #[must_use]
    pub fn guest_is_short(&self) -> bool {
        self.guest.as_ref().is_some_and(|g| g.past().len() < 12)
    }
}
