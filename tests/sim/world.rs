//! Two hosts, their link, the arbiter and the client in one thread, driven by one queue of events.
//!
//! Time is simulated nanoseconds; equal times are ordered by when they were scheduled. Everything
//! random comes from the seed, so a run is repeated exactly by its seed. `links` carries messages
//! and faults, `guests` the processors, this file the queue and the nodes.

use super::client::Client;
use super::faults::{FAULTS_END_NS, Fault, Plan, RUN_END_NS};
use super::host::Host;
use super::invariants::{Invariants, Violation};
use super::link::Link;
use super::matrix::Cell;
use super::random::Random;
use super::sabotage::Sabotage;
use arbiter::register::{Outcome, Register};
use logging_channel::failure_detector::START_PATIENCE_NS;
use logging_channel::message::Message;
use std::collections::BTreeMap;
use vmm::replication::engine::Offer;
use vmm::replication::executor::Input;
use vmm::replication::node::{ArbiterReply, NodeCommand, NodeEvent, Note};
use vmm::replication::role::Role;

/// By how much a timer may be early.
const EARLY_TICK_NS_MAX: u64 = 5_000_000;

/// How a run is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Everything random follows from it.
    pub seed: u64,
    /// What is broken on purpose.
    pub sabotage: Sabotage,
    /// Print everything that happens.
    pub trace: bool,
    /// Instead of faults drawn from the seed, those of one cell of the partition matrix.
    pub cell: Option<Cell>,
}

/// What a run was like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    /// Events handled.
    pub events: u64,
    /// Requests answered.
    pub answered: u64,
    /// Longest time the client waited for a new answer.
    pub silence_ns_max: u64,
    /// Whether a backup went live.
    pub went_live: bool,
    /// Whether a primary went on alone.
    pub went_on_alone: bool,
    /// States in the log that a backup went on from.
    pub states: u64,
    /// Running guests that were given to a new backup.
    pub transfers: u64,
}

/// Something that happens at a time.
#[derive(Debug, Clone)]
pub enum Event {
    /// For the node of a host's process.
    Node(usize, u64, NodeEvent),
    /// The node's timer.
    Tick(usize, u64, u64),
    /// The processor's thread.
    Processor(usize, u64, u64),
    /// The node may look at what the engine emitted.
    Emitted(usize, u64),
    /// An offer of the node reaches the engine.
    Offered(usize, u64),
    /// A frame reaches the engine.
    Input(usize, u64, Input),
    /// Something arrives over the link `1` at end `0`.
    Deliver(usize, u64),
    /// The backup tries to connect.
    Connect,
    /// A claim reaches the arbiter.
    ClaimArrives(usize, u64, u64, arbiter::register::Claim),
    /// The arbiter's answer reaches the host.
    ClaimAnswered(usize, u64, u64, ArbiterReply),
    /// The client sends or repeats its request.
    ClientSends(u64),
    /// A frame reaches the client.
    ClientReceives(Vec<u8>),
    /// A fault begins.
    Begin(Fault),
    /// A paused host goes on.
    Resume(usize, u64),
}

/// The simulation.
pub struct World {
    pub(super) now: u64,
    pub(super) random: Random,
    pub(super) plan: Plan,
    pub(super) options: Options,
    queue: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    pub(super) hosts: [Host; 2],
    pub(super) link: Option<Link>,
    pub(super) links_made: u64,
    pub(super) partition_until: u64,
    pub(super) slow: (u64, u64),
    pub(super) register: Register,
    pub(super) register_before: Register,
    pub(super) arbiter_down_until: u64,
    pub(super) arbiter_unreachable_until: [u64; 2],
    pub(super) arbiter_mute_until: [u64; 2],
    pub(super) arbiter_slow: [(u64, u64); 2],
    pub(super) arbiter_twice_until: [u64; 2],
    pub(super) one_way_until: [u64; 2],
    pub(super) twice_until: u64,
    pub(super) requests: u64,
    pub(super) client: Client,
    pub(super) invariants: Invariants,
    pub(super) stats: Stats,
    /// The life that last gave its guest's state to another.
    given_by: usize,
    violation: Option<Violation>,
}

/// Runs one seed.
///
/// # Errors
/// With the invariant that was broken.
pub fn run(options: Options) -> Result<Stats, Violation> {
    let mut random = Random::new(options.seed);
    let mut plan = Plan::draw(&mut random);
    if let Some(cell) = options.cell {
        plan.faults = cell.faults();
        plan.power_off_exit = u64::MAX;
    }
    let mut invariants = Invariants::default();
    invariants.standbys = plan.standbys;
    let hosts = [0, 1].map(|id| {
        let name = holder(options, id, 0);
        let life = invariants.begin(name.clone());
        Host::new((id, 0), life, name, 0, &plan, random.split())
    });
    let mut world = World {
        now: 0,
        random,
        plan,
        options,
        queue: BTreeMap::new(),
        scheduled: 0,
        hosts,
        link: None,
        links_made: 0,
        partition_until: 0,
        slow: (0, 0),
        register: Register::default(),
        register_before: Register::default(),
        arbiter_down_until: 0,
        arbiter_unreachable_until: [0; 2],
        arbiter_mute_until: [0; 2],
        arbiter_slow: [(0, 0); 2],
        arbiter_twice_until: [0; 2],
        one_way_until: [0; 2],
        twice_until: 0,
        requests: 0,
        client: Client::default(),
        invariants,
        stats: Stats::default(),
        given_by: 0,
        violation: None,
    };
    world.run()
}

pub(super) fn holder(options: Options, id: usize, run: u64) -> String {
    let name = if id == 0 { "a" } else { "b" };
    if options.sabotage == Sabotage::ReuseName {
        name.into()
    } else {
        format!("{name}#{run}")
    }
}

impl World {
    fn run(&mut self) -> Result<Stats, Violation> {
        self.trace(|w| format!("{:#?}", w.plan));
        for (at, fault) in self.plan.faults.clone() {
            self.at(at, Event::Begin(fault));
        }
        for id in 0..2 {
            let at = self.random.range(0, 5_000_000);
            self.at(at, Event::Node(id, 0, NodeEvent::Start));
        }
        self.at(1_000_000, Event::Connect);
        self.at(2_000_000, Event::ClientSends(1));
        let mut end_ns = RUN_END_NS;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > end_ns && end_ns == RUN_END_NS && self.invariants.somebody_waits() {
                // A peer that dies while the pair is being set up is waited for much longer.
                end_ns += START_PATIENCE_NS;
            }
            if at > end_ns {
                break;
            }
            self.now = at;
            self.stats.events += 1;
            self.dispatch(event);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
        }
        for id in 0..2 {
            if self.hosts[id].up {
                self.keep_trail(id);
            }
        }
        self.invariants
            .finish(self.plan.is_calm(), self.client.answered_at)?;
        self.stats.answered = self.client.answered;
        self.stats.silence_ns_max = self.client.silence_ns_max;
        Ok(self.stats)
    }

    /// Whether `event` is for a host that stands still, a process that is gone, or nobody.
    fn dispatch(&mut self, event: Event) {
        let for_host = match &event {
            Event::Node(id, run, _)
            | Event::Tick(id, run, _)
            | Event::Processor(id, run, _)
            | Event::Emitted(id, run)
            | Event::Offered(id, run)
            | Event::Input(id, run, _)
            | Event::ClaimAnswered(id, run, ..) => Some((*id, Some(*run))),
            Event::Deliver(id, _) => Some((*id, None)),
            _ => None,
        };
        if let Some((id, run)) = for_host {
            let host = &mut self.hosts[id];
            if !host.up || run.is_some_and(|run| run != host.run) {
                return;
            }
            if host.paused {
                host.deferred.push(event);
                return;
            }
        }
        match event {
            Event::Node(id, _, event) => self.node(id, event),
            Event::Tick(id, _, token) if token == self.hosts[id].tick_token => {
                self.node(id, NodeEvent::Tick);
            }
            Event::Tick(..) => {}
            Event::Processor(id, _, token) => self.processor(id, token),
            Event::Emitted(id, _) => self.take_emitted(id),
            Event::Offered(id, _) => self.offered(id),
            Event::Input(id, _, input) => self.input(id, input),
            Event::Deliver(id, link) => self.deliver(id, link),
            Event::Connect => self.connect(),
            Event::ClaimArrives(id, run, request, claim) => {
                self.claim_arrives(id, run, request, &claim)
            }
            Event::ClaimAnswered(id, _, request, reply) => self.claim_answered(id, request, reply),
            Event::ClientSends(sequence) => self.client_sends(sequence),
            Event::ClientReceives(bytes) => self.client_receives(&bytes),
            Event::Begin(fault) => self.begin(fault),
            Event::Resume(id, run) => self.resume(id, run),
        }
    }

    /// Gives the node an event and does what it says.
    pub(super) fn node(&mut self, id: usize, event: NodeEvent) {
        self.trace(|_| format!("{} <- {event:?}", ["A", "B"][id]));
        let host = &mut self.hosts[id];
        let clock = host.clock(self.now);
        let commands = host.node.handle(clock, event);
        host.mark = host.mark.max(host.node.generation());
        let (role, life, mark) = (host.node.role(), host.life, host.mark);
        let generation = host.node.generation();
        let before = self.invariants.lives[life].role;
        self.invariants.now = self.now;
        let checked = self.invariants.role_is(life, role);
        self.check(checked);
        let checked = self.invariants.generation_is(role, generation, mark);
        self.check(checked);
        if before != Some(role) {
            self.stats.went_live |= before == Some(Role::GoingLive) && role == Role::Solo;
            self.stats.went_on_alone |= before == Some(Role::Contested) && role == Role::Solo;
        }
        for command in commands {
            self.trace(|_| format!("{} -> {command:?}", ["A", "B"][id]));
            self.command(id, command);
        }
        if self.hosts[id].up && !self.hosts[id].to_node.is_empty() {
            self.soon(0, Event::Emitted(id, self.hosts[id].run));
        }
    }

    fn command(&mut self, id: usize, command: NodeCommand) {
        let (run, life) = (self.hosts[id].run, self.hosts[id].life);
        match command {
            NodeCommand::Send(message) => {
                if matches!(message, Message::Complete(_)) {
                    self.given_by = life;
                }
                self.send(id, message);
            }
            NodeCommand::CloseLink { .. } => self.close(id),
            NodeCommand::Claim { expected, new } => self.claim(id, expected, new),
            NodeCommand::Release(output) => self.release(id, output),
            NodeCommand::Engine(offer) => {
                match &offer {
                    Offer::Records(records) => {
                        self.invariants.lives[life].received += records.len() as u64;
                    }
                    Offer::Begin { next, .. } => {
                        self.invariants.joined(life, self.given_by, next.0);
                        self.stats.transfers += 1;
                    }
                    _ => {}
                }
                self.offer(id, offer);
            }
            NodeCommand::StartGuest { generation, clock } => {
                let checked = self.invariants.guest_started(life);
                self.check(checked);
                self.hosts[id].start_guest(self.now, generation, clock, self.plan.power_off_exit);
                self.flush(id);
                self.wake_processor(id, 0);
            }
            NodeCommand::Halted { reason } => self.invariants.lives[life].halted = Some(reason),
            NodeCommand::WakeAt(at) => {
                self.hosts[id].tick_token += 1;
                let token = self.hosts[id].tick_token;
                // A timer may be early by the time in which its owner had no processor.
                let early = if self.random.percent(5) {
                    self.random.range(1, EARLY_TICK_NS_MAX)
                } else {
                    0
                };
                let at = at.0.saturating_sub(self.hosts[id].clock_offset_ns + early);
                let at = at.max(self.now);
                self.at(at, Event::Tick(id, run, token));
            }
            NodeCommand::BeginTransfer { attempt } => self.begin_transfer(id, attempt),
            NodeCommand::EndTransfer => {}
            NodeCommand::Note(Note::PeerSuspected { .. }) => self.invariants.suspicions += 1,
            NodeCommand::Note(_) | NodeCommand::Announce | NodeCommand::Ended(_) => {}
        }
    }

    fn claim(&mut self, id: usize, expected: u64, new: u64) {
        self.invariants.claims += 1;
        self.requests += 1;
        let (request, run) = (self.requests, self.hosts[id].run);
        self.hosts[id].request = Some(request);
        if self.options.sabotage == Sabotage::GoLiveWithoutClaim
            && self.hosts[id].node.role() == Role::GoingLive
        {
            let reply = ArbiterReply::Granted { generation: new };
            return self.soon(100_000, Event::ClaimAnswered(id, run, request, reply));
        }
        let name = holder(self.options, id, run);
        let claim = arbiter::register::Holder::new(name)
            .and_then(|holder| arbiter::register::Claim::new(expected, new, holder));
        match claim {
            Ok(claim) => {
                let arrives = Event::ClaimArrives(id, run, request, claim);
                if !self.arbiter_loses(id) {
                    let delay = self.random.range(100_000, 20_000_000);
                    self.soon(delay + self.arbiter_slow(id), arrives.clone());
                }
                if self.random.percent(10) || self.now < self.arbiter_twice_until[id] {
                    let delay = self.random.range(100_000, 600_000_000);
                    self.soon(delay, arrives);
                }
            }
            Err(invalid) => self.check(Err(format!("invalid claim: {invalid}"))),
        }
        let unanswered = Event::ClaimAnswered(id, run, request, ArbiterReply::Unreachable);
        self.soon(150_000_000, unanswered);
    }

    fn arbiter_slow(&self, id: usize) -> u64 {
        let (by_ns, until) = self.arbiter_slow[id];
        if self.now < until { by_ns } else { 0 }
    }

    fn arbiter_loses(&mut self, id: usize) -> bool {
        let lossy = self.now < FAULTS_END_NS && self.random.percent(self.plan.arbiter_loss_percent);
        lossy || self.now < self.arbiter_unreachable_until[id]
    }

    fn claim_arrives(
        &mut self,
        id: usize,
        run: u64,
        request: u64,
        claim: &arbiter::register::Claim,
    ) {
        if self.now < self.arbiter_down_until {
            return;
        }
        let before = self.register.clone();
        let outcome = self.register.claim(claim);
        if self.register != before {
            self.register_before = before;
        }
        let reply = match outcome {
            Outcome::Granted => {
                let generation = claim.new_generation();
                let checked = self.invariants.granted(generation, claim.holder().as_str());
                self.check(checked);
                ArbiterReply::Granted { generation }
            }
            Outcome::Refused { generation, holder } => {
                let holder = holder.map_or(String::new(), |holder| holder.as_str().to_owned());
                ArbiterReply::Refused { generation, holder }
            }
        };
        self.trace(|_| format!("arbiter: {claim:?}: {reply:?}"));
        if !self.arbiter_loses(id) && self.now >= self.arbiter_mute_until[id] {
            let delay = self.random.range(100_000, 20_000_000) + self.arbiter_slow(id);
            self.soon(delay, Event::ClaimAnswered(id, run, request, reply));
        }
    }

    fn claim_answered(&mut self, id: usize, request: u64, reply: ArbiterReply) {
        if self.hosts[id].request != Some(request) {
            return;
        }
        self.hosts[id].request = None;
        self.node(id, NodeEvent::Arbiter(reply));
    }

    /// Remembers the first broken invariant.
    pub(super) fn check(&mut self, checked: Result<(), Violation>) {
        if let Err(violation) = checked {
            self.trace(|_| format!("VIOLATION {violation}"));
            self.violation.get_or_insert(violation);
        }
    }

    /// Schedules `event` at `at`.
    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        self.queue.insert((at, self.scheduled), event);
    }

    /// Schedules `event` in `delay_ns`.
    pub(super) fn soon(&mut self, delay_ns: u64, event: Event) {
        self.at(self.now + delay_ns, event);
    }

    pub(super) fn trace(&self, text: impl FnOnce(&Self) -> String) {
        if self.options.trace {
            println!("{:>12.6} ms  {}", self.now as f64 / 1e6, text(self));
        }
    }
}
