//! The world inside the hosts: the processor's thread, its engine, and its queues to the node.

use super::host::Processor;
use super::sabotage::Sabotage;
use super::world::{Event, World};
use logging_channel::record::{LogIndex, RecordBody};
use vmm::replication::engine::{Emitted, Next, Offer};
use vmm::replication::executor::{Input, Produced};
use vmm::replication::node::NodeEvent;
use vmm::replication::role::Role;

/// A part of a state that holds nothing.
const EMPTY_PAGE: u8 = 0;
/// A byte of the toy's state that is in its memory.
const MEMORY_BYTE: usize = 13 * 8;

impl World {
    /// An offer leaves the node.
    pub(super) fn offer(&mut self, id: usize, offer: Offer) {
        let skip = self.options.sabotage == Sabotage::SkipTheRestOfTheLog;
        let host = &mut self.hosts[id];
        if skip && offer == Offer::FinishLog {
            host.skip_records = true;
            host.offers
                .retain(|(_, offer)| !matches!(offer, Offer::Records(_)));
        }
        let delay = if host.random.percent(50) {
            0
        } else {
            host.random.range(0, 2_000_000)
        };
        let at = host
            .offers
            .back()
            .map_or(0, |(at, _)| *at)
            .max(self.now + delay);
        host.offers.push_back((at, offer));
        let run = host.run;
        self.at(at, Event::Offered(id, run));
    }

    /// A frame from outside reaches the processor's thread.
    pub(super) fn input(&mut self, id: usize, input: Input) {
        let host = &mut self.hosts[id];
        let at = host.offers.back().map_or(0, |(at, _)| *at).max(self.now);
        host.offers.push_back((at, Offer::Input(input)));
        self.offered(id);
    }

    /// An offer has reached the processor's thread.
    pub(super) fn offered(&mut self, id: usize) {
        if self.hosts[id].processor == Processor::Waiting {
            self.wake_processor(id, 0);
        }
    }

    /// What is offered now, as far as sabotage lets it through.
    fn next_offer(&mut self, id: usize) -> Option<Offer> {
        let (now, power_off_exit, sabotage) =
            (self.now, self.plan.power_off_exit, self.options.sabotage);
        loop {
            let host = &mut self.hosts[id];
            if host.offers.front()?.0 > now {
                return None;
            }
            let (_, mut offer) = host.offers.pop_front()?;
            let Offer::Records(records) = &mut offer else {
                if self.load(id, &offer) {
                    continue;
                }
                return Some(offer);
            };
            if host.skip_records {
                continue;
            }
            if let Some(RecordBody::Start(start)) = records.first().map(|r| &r.body) {
                host.replay_guest(start, power_off_exit);
            }
            if sabotage == Sabotage::WrongByte {
                records.iter_mut().for_each(spoil);
            }
            return Some(offer);
        }
    }

    /// The node wants the guest's state sent: empty pages first, while the guest runs.
    pub(super) fn begin_transfer(&mut self, id: usize, attempt: u64) {
        let run = self.hosts[id].run;
        let mut delay = 0;
        for _ in 0..self.random.range(0, 4) {
            delay += self.random.range(0, 20_000_000);
            let bytes = vec![EMPTY_PAGE];
            let part = NodeEvent::TransferPart { attempt, bytes };
            self.soon(delay, Event::Node(id, run, part));
        }
        delay += self.random.range(0, 20_000_000);
        let ready = NodeEvent::TransferReady { attempt };
        self.soon(delay, Event::Node(id, run, ready));
    }

    /// Takes what is for the builder of a guest; false for everything else.
    fn load(&mut self, id: usize, offer: &Offer) -> bool {
        let spoil = self.options.sabotage == Sabotage::WrongState;
        let host = &mut self.hosts[id];
        match offer {
            Offer::Load(part) => {
                if part[..] != [EMPTY_PAGE] {
                    host.loading.extend(part);
                    if let (true, Some(byte)) = (spoil, host.loading.get_mut(MEMORY_BYTE)) {
                        *byte ^= 0x10;
                    }
                }
                let (unloads, bytes) = (host.unloads, part.len() as u64);
                self.emit(id, vec![Emitted::Loaded { unloads, bytes }]);
            }
            Offer::Unload => {
                host.loading.clear();
                host.unloads += 1;
            }
            Offer::Begin { next, .. } => {
                let begun = host.begin_guest(*next);
                self.check(begun);
            }
            _ => return false,
        }
        true
    }

    pub(super) fn wake_processor(&mut self, id: usize, delay_ns: u64) {
        let host = &mut self.hosts[id];
        host.processor_token += 1;
        let event = Event::Processor(id, host.run, host.processor_token);
        self.soon(delay_ns, event);
    }

    /// One turn of the processor's thread.
    pub(super) fn processor(&mut self, id: usize, token: u64) {
        let host = &mut self.hosts[id];
        if token != host.processor_token {
            return;
        }
        let clock = host.clock(self.now);
        if let (Processor::Running, Some(engine)) = (host.processor, &mut host.engine) {
            let toy = engine.executor();
            toy.kick_next = host.random.percent(self.plan.kick_percent);
            toy.loses_writes = self.options.sabotage == Sabotage::LostWrite;
            self.stats.states += std::mem::take(&mut toy.states_loaded);
            engine.execute().unwrap_or_else(|never| match never {});
        }
        host.processor = Processor::Waiting;
        while let Some(offer) = self.next_offer(id) {
            let host = &mut self.hosts[id];
            let Some(engine) = &mut host.engine else {
                continue;
            };
            if matches!(offer, Offer::GoLive { .. }) {
                let exits = engine.executor().exits();
                self.invariants.lives[host.life].live_exits = usize::try_from(exits).ok();
            }
            engine.offer(clock, offer);
        }
        self.flush(id);
        self.decide(id);
    }

    fn decide(&mut self, id: usize) {
        let now = self.now;
        let host = &mut self.hosts[id];
        if host.queue_full() {
            host.processor = Processor::Blocked;
            return;
        }
        let clock = host.clock(now);
        let Some(engine) = &mut host.engine else {
            return;
        };
        let next = engine.poll(clock).unwrap_or_else(|never| match never {});
        match next {
            Next::Run => {
                host.processor = Processor::Running;
                let stretch_ns = host.random.range(50_000, 4_000_000);
                self.flush(id);
                self.wake_processor(id, stretch_ns);
            }
            Next::Wait { deadline } => {
                self.flush(id);
                if let Some(deadline) = deadline {
                    self.wake_processor(id, deadline.since(clock).max(1_000));
                }
            }
            Next::Stopped => self.flush(id),
        }
    }

    /// What the engine emitted goes to the node, through a queue.
    pub(super) fn flush(&mut self, id: usize) {
        let host = &mut self.hosts[id];
        let Some(engine) = &mut host.engine else {
            return;
        };
        let mut items = engine.take_outbox();
        if items.is_empty() {
            return;
        }
        if host.skip_records {
            let received = self.invariants.lives[host.life].received;
            pretend_replayed(&mut items, received);
        }
        let life = host.life;
        let mut leaked = Vec::new();
        for item in &items {
            match item {
                Emitted::Recorded { record, output } => {
                    self.invariants.lives[life].next_index = record.index.0 + 1;
                    if let Some(output) = output {
                        self.invariants
                            .produced(life, record.index.0, &output.bytes);
                        leaked.push(output.clone());
                    }
                }
                Emitted::Replayed { next, outputs, .. } => {
                    self.invariants.lives[life].next_index = next.0;
                    for (index, output) in outputs {
                        self.invariants.produced(life, index.0, &output.bytes);
                    }
                }
                Emitted::Diverged(divergence) => {
                    self.check(Err(format!("host {id} diverged: {divergence}")));
                }
                Emitted::Snapshot { .. }
                | Emitted::Loaded { .. }
                | Emitted::Rested
                | Emitted::Drained
                | Emitted::Live
                | Emitted::Ended(_) => {}
            }
        }
        self.leak(id, leaked);
        self.emit(id, items);
    }

    /// Puts a batch on its way from the processor's thread to the node.
    fn emit(&mut self, id: usize, items: Vec<Emitted>) {
        let host = &mut self.hosts[id];
        let delay = if host.random.percent(50) {
            0
        } else {
            host.random.range(0, 2_000_000)
        };
        let at = host
            .to_node
            .back()
            .map_or(0, |(at, _)| *at)
            .max(self.now + delay);
        host.to_node.push_back((at, items));
        let event = Event::Emitted(id, host.run);
        self.at(at, event);
    }

    /// Sabotage: output leaves before anybody else knows of it.
    fn leak(&mut self, id: usize, outputs: Vec<Produced>) {
        let early = self.options.sabotage == Sabotage::ReleaseBeforeAcknowledgement;
        if early && self.hosts[id].node.role() == Role::Protected {
            outputs
                .into_iter()
                .for_each(|output| self.release(id, output));
        }
    }

    /// The node takes what has arrived, as long as it wants more.
    pub(super) fn take_emitted(&mut self, id: usize) {
        let now = self.now;
        let host = &mut self.hosts[id];
        let ready = host.to_node.front().is_some_and(|(at, _)| *at <= now);
        if !ready || !host.node.accepts_emitted() {
            return;
        }
        let Some((_, items)) = host.to_node.pop_front() else {
            return;
        };
        self.node(id, NodeEvent::Emitted(items));
        let host = &mut self.hosts[id];
        if host.processor == Processor::Blocked && !host.queue_full() {
            host.processor = Processor::Waiting;
            self.wake_processor(id, 0);
        }
    }
}

/// Flips one bit of a packet.
fn spoil(record: &mut logging_channel::record::Record) {
    if let RecordBody::Packet { bytes, .. } = &mut record.body
        && let Some(byte) = bytes.last_mut()
    {
        *byte ^= 0x10;
    }
}

/// Sabotage: claims that everything received was replayed.
fn pretend_replayed(items: &mut Vec<Emitted>, received: u64) {
    let Some(drained) = items.iter().position(|item| *item == Emitted::Drained) else {
        return;
    };
    let next = LogIndex(received);
    items.insert(
        drained,
        Emitted::Replayed {
            next,
            exits: 0,
            outputs: Vec::new(),
        },
    );
}
