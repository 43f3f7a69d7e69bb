//! One state of the world, and the bounds within which all of them are visited.

#![forbid(unsafe_code)]

use crate::host::{Fate, Host};
use crate::invariants::Broken;
use crate::sabotage::Sabotage;
use arbiter::register::Register;
use logging_channel::message::Message;
use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use vmm::replication::node::ArbiterReply;
use vmm::replication::role::Role;

/// How much may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Hosts: one primary, the others backups.
    pub hosts: usize,
    /// Faults of any kind, together.
    pub faults: u8,
    /// Outputs that guests produce, together.
    pub outputs: u8,
    /// Whether a guest's thread may be late: with what its node offers, and with what it reports.
    pub lagging: bool,
}

/// State transfers that may be begun in one run.
const TRANSFERS: u8 = 1;

/// What travels on a connection in one direction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Parcel {
    /// A message.
    Message(Box<Message>),
    /// The connection is closed behind what came before.
    End,
}

/// One direction of a connection.
#[derive(Debug, Clone, Default, Hash)]
pub struct Direction {
    /// Under way, in order.
    pub queue: VecDeque<Parcel>,
    /// Nothing more arrives, and nobody is told.
    pub dead: bool,
}

/// A connection between the primary's host (end 0) and a backup's (end 1).
#[derive(Debug, Clone, Hash)]
pub struct Link {
    /// The backup's host.
    pub backup: usize,
    /// Whether each end still uses it.
    pub open: [bool; 2],
    /// Towards each end.
    pub towards: [Direction; 2],
}

/// A claim on its way to the arbiter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    /// Whose.
    pub host: usize,
    /// Which process.
    pub life: u8,
    /// Number of the request in that process.
    pub number: u8,
    /// Name claimed under.
    pub holder: String,
    /// Generation expected.
    pub expected: u64,
    /// Generation wanted.
    pub new: u64,
}

/// An answer on its way back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Answer {
    /// To which host.
    pub host: usize,
    /// To which process.
    pub life: u8,
    /// To which request.
    pub number: u8,
    /// What it says.
    pub reply: ArbiterReply,
}

/// One state.
#[allow(
    clippy::derived_hash_with_manual_eq,
    reason = "equality is equality of hashes"
)]
#[derive(Debug, Clone, Hash)]
pub struct World {
    /// Host 0 is the primary's; the others are backups'.
    pub hosts: Vec<Arc<Host>>,
    /// Connections of which an end is open.
    pub links: Vec<Link>,
    /// The arbiter.
    pub register: Register,
    /// What it held before its last grant (for sabotage).
    pub register_before: Option<Register>,
    /// Claims under way.
    pub requests: BTreeSet<Request>,
    /// Answers under way.
    pub answers: Vec<Answer>,
    /// Every output that ever left: index and who recorded it.
    pub released: BTreeSet<(u8, u8)>,
    /// Processes that were ever the only one.
    pub alone: BTreeSet<u8>,
    /// A connection lost or doubled a message in its midst, which TCP does not do. Nothing may go
    /// wrong then, but nothing needs to go on.
    pub unfaithful: bool,
    /// Guests made from nothing.
    pub guests_started: u8,
    /// Processes so far.
    pub lives: u8,
    /// Faults that may still happen.
    pub faults_left: u8,
    /// Outputs that may still be produced.
    pub outputs_left: u8,
    /// State transfers that may still be begun: one that breaks is begun again, for ever.
    pub transfers_left: u8,
    /// [`Bounds::lagging`].
    pub lagging: bool,
    /// The first invariant that was broken on the way here.
    pub broken: Option<Broken>,
}

/// Equal as far as the checker can tell: by hash.
impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        let hash = |world: &Self| {
            let mut hasher = DefaultHasher::new();
            world.hash(&mut hasher);
            hasher.finish()
        };
        hash(self) == hash(other)
    }
}

impl World {
    /// Everything off; [`crate::step::boot`] starts it.
    #[must_use]
    pub fn new(bounds: Bounds, sabotage: Sabotage) -> Self {
        let hosts = (0..bounds.hosts).map(|id| {
            let life = u8::try_from(id).unwrap_or(u8::MAX);
            Arc::new(Host::new(id, 0, life, 0, sabotage))
        });
        Self {
            hosts: hosts.collect(),
            links: Vec::new(),
            register: Register::default(),
            register_before: None,
            requests: BTreeSet::new(),
            answers: Vec::new(),
            released: BTreeSet::new(),
            alone: BTreeSet::new(),
            unfaithful: false,
            guests_started: 0,
            lives: u8::try_from(bounds.hosts).unwrap_or(u8::MAX),
            faults_left: bounds.faults,
            outputs_left: bounds.outputs,
            transfers_left: TRANSFERS,
            lagging: bounds.lagging,
            broken: None,
        }
    }

    /// Mutable access to host `id`.
    pub fn host(&mut self, id: usize) -> &mut Host {
        Arc::make_mut(&mut self.hosts[id])
    }

    /// Remembers the first broken invariant.
    pub fn breaks(&mut self, broken: Broken) {
        self.broken.get_or_insert(broken);
    }

    /// The connection that host `id` uses, and which end of it.
    #[must_use]
    pub fn link_of(&self, id: usize) -> Option<(usize, usize)> {
        let end = usize::from(id != 0);
        self.links
            .iter()
            .position(|link| link.open[end] && (end == 0 || link.backup == id))
            .map(|index| (index, end))
    }

    /// Whether backup `id` can connect to the primary now.
    #[must_use]
    pub fn may_connect(&self, id: usize) -> bool {
        let room = self.hosts[0].role() != Some(Role::Solo) || self.transfers_left > 0;
        room && self.hosts[0].fate == Fate::Running
            && self.hosts[id].role() == Some(Role::Joining)
            && self.link_of(0).is_none()
            && self.link_of(id).is_none()
    }
}
