//! The world between the hosts: link, client, faults.

use super::faults::{FAULTS_END_NS, Fault};
use super::host::Host;
use super::link::{Link, Parcel};
use super::random::mix;
use super::sabotage::Sabotage;
use super::toy_cpu::encode_request;
use super::world::{Event, World, holder};
use logging_channel::message::Message;
use logging_channel::record::OutputDevice;
use vmm::replication::executor::{Input, Produced};
use vmm::replication::node::NodeEvent;
use vmm::replication::role::Role;

/// The backup's runtime tries to connect this often.
const CONNECT_NS: u64 = 20_000_000;
/// The client repeats a request after this time.
const REPEAT_NS: u64 = 60_000_000;

impl World {
    fn delay(&mut self) -> u64 {
        let (by_ns, until) = self.slow;
        let slow = if self.now < until { by_ns } else { 0 };
        self.plan.delay_ns + self.random.range(0, 300_000) + slow
    }

    fn dispatch_parcel(&mut self, to: usize, parcel: Parcel) {
        let delay = self.delay();
        let Some(link) = &mut self.link else { return };
        let (at, id) = (link.send(self.now, to, parcel, delay), link.id);
        self.at(at, Event::Deliver(to, id));
    }

    pub(super) fn send(&mut self, from: usize, message: Message) {
        if self.link.as_ref().is_some_and(|link| link.open[from]) {
            let twice = self.now < self.twice_until;
            if twice {
                self.dispatch_parcel(1 - from, Parcel::Message(Box::new(message.clone())));
            }
            self.dispatch_parcel(1 - from, Parcel::Message(Box::new(message)));
        }
    }

    /// One end closes: it hears nothing more, the other learns of it after what was sent.
    pub(super) fn close(&mut self, from: usize) {
        let Some(link) = &mut self.link else { return };
        if std::mem::take(&mut link.open[from]) {
            self.dispatch_parcel(1 - from, Parcel::End);
        }
    }

    pub(super) fn deliver(&mut self, to: usize, id: u64) {
        let held_until = self.partition_until.max(self.one_way_until[to]);
        if self.now < held_until {
            let at = held_until + self.plan.delay_ns;
            return self.at(at, Event::Deliver(to, id));
        }
        let Some(link) = self.link.as_mut().filter(|link| link.id == id) else {
            return;
        };
        let parcel = link.receive(to);
        if !link.open[to] {
            return;
        }
        match parcel {
            Some(Parcel::Message(message)) => self.node(to, NodeEvent::PeerMessage(*message)),
            Some(Parcel::End) => {
                link.open[to] = false;
                self.node(to, NodeEvent::PeerDisconnected);
            }
            None => {}
        }
    }

    pub(super) fn connect(&mut self) {
        self.soon(CONNECT_NS, Event::Connect);
        let ready = self.hosts.iter().all(|host| host.up && !host.paused);
        let roles = [0, 1].map(|id| self.hosts[id].node.role());
        // A backup calls its primary; whoever runs the guest alone calls those that stand by.
        let wanted = match roles {
            [Role::Joining, Role::Joining] => false,
            [_, Role::Joining] | [Role::Joining, Role::Solo] => true,
            _ => false,
        };
        let free = self
            .link
            .as_ref()
            .is_none_or(|link| link.open == [false; 2]);
        let held_until = self.one_way_until.iter().max().copied().unwrap_or(0);
        let reachable = self.now >= self.partition_until.max(held_until);
        if !ready || !wanted || !free || !reachable {
            return;
        }
        self.links_made += 1;
        self.link = Some(Link::new(self.links_made));
        self.node(0, NodeEvent::PeerConnected);
        self.node(1, NodeEvent::PeerConnected);
    }

    /// The connection is gone for both ends, or only for those that can be told.
    fn break_link(&mut self, told: [bool; 2]) {
        for to in (0..2).filter(|to| told[*to]) {
            let delay = self.delay();
            let Some(link) = &mut self.link else { return };
            link.cut(to, &mut self.random);
            let (at, id) = (link.send(self.now, to, Parcel::End, delay), link.id);
            self.at(at, Event::Deliver(to, id));
        }
    }

    pub(super) fn release(&mut self, id: usize, output: Produced) {
        let life = self.hosts[id].life;
        // Its backup may have been restarted since; what counts is what any other copy held.
        let others = self.invariants.lives.iter().enumerate();
        let backup_received = others
            .filter(|(other, _)| *other != life)
            .map(|(_, other)| other.received)
            .max()
            .unwrap_or(0);
        let checked = self
            .invariants
            .released(life, &output.bytes, backup_received);
        self.check(checked);
        if output.device == OutputDevice::Console {
            return;
        }
        let lossy = self.now < FAULTS_END_NS && self.random.percent(self.plan.client_loss_percent);
        if !lossy {
            let delay = self.random.range(50_000, 500_000);
            self.soon(delay, Event::ClientReceives(output.bytes));
        }
    }

    pub(super) fn client_sends(&mut self, sequence: u64) {
        if sequence != self.client.sequence {
            return;
        }
        let input = Input::Packet {
            device: 0,
            bytes: encode_request(sequence),
        };
        for id in 0..2 {
            if self.hosts[id].up && self.hosts[id].engine.is_some() {
                let delay = self.random.range(50_000, 300_000);
                self.soon(delay, Event::Input(id, self.hosts[id].run, input.clone()));
            }
        }
        self.soon(REPEAT_NS, Event::ClientSends(sequence));
    }

    pub(super) fn client_receives(&mut self, bytes: &[u8]) {
        match self.client.receive(self.now, bytes) {
            Ok(true) => {
                let think = self.random.range(0, 25_000_000);
                self.soon(think, Event::ClientSends(self.client.sequence));
            }
            Ok(false) => {}
            Err(violation) => self.check(Err(violation)),
        }
    }

    pub(super) fn begin(&mut self, fault: Fault) {
        self.trace(|_| format!("fault: {fault:?}"));
        match fault {
            Fault::Crash { host, told } => self.crash(host, told),
            Fault::Restart { host } => self.restart(host),
            Fault::Pause { host, for_ns } => {
                if self.hosts[host].up && !self.hosts[host].paused {
                    self.hosts[host].paused = true;
                    self.soon(for_ns, Event::Resume(host, self.hosts[host].run));
                }
            }
            Fault::Partition { for_ns } => {
                self.partition_until = self.partition_until.max(self.now + for_ns);
            }
            Fault::Break => self.break_link([true; 2]),
            Fault::Slow { by_ns, for_ns } => self.slow = (by_ns, self.now + for_ns),
            Fault::ArbiterDown { for_ns } => {
                self.arbiter_down_until = self.arbiter_down_until.max(self.now + for_ns);
                if self.options.sabotage == Sabotage::ForgetGeneration {
                    self.register = self.register_before.clone();
                }
            }
            Fault::ArbiterUnreachable { host, for_ns } => {
                let until = &mut self.arbiter_unreachable_until[host];
                *until = (*until).max(self.now + for_ns);
            }
            Fault::Stop { .. } | Fault::Handover { .. } | Fault::ClockStep { .. } => {
                self.begin_on_host(fault)
            }
            Fault::OneWay { to, for_ns } => self.one_way_until[to] = self.now + for_ns,
            Fault::Twice { for_ns } => self.twice_until = self.now + for_ns,
            Fault::ArbiterOneWay { host, for_ns } => {
                self.arbiter_mute_until[host] = self.now + for_ns;
            }
            Fault::ArbiterSlow {
                host,
                by_ns,
                for_ns,
            } => self.arbiter_slow[host] = (by_ns, self.now + for_ns),
            Fault::ArbiterTwice { host, for_ns } => {
                self.arbiter_twice_until[host] = self.now + for_ns;
            }
        }
    }

    fn begin_on_host(&mut self, fault: Fault) {
        match fault {
            Fault::ClockStep { host, by_ns } => {
                self.hosts[host].clock_offset_ns += by_ns;
                // The timer that was set is due by now.
                let run = self.hosts[host].run;
                self.at(self.now, Event::Node(host, run, NodeEvent::Tick));
                self.offered(host);
            }
            Fault::Stop { host } => self.operator(host, NodeEvent::OperatorStop),
            Fault::Handover { host } => self.operator(host, NodeEvent::OperatorHandover),
            _ => {}
        }
    }

    fn operator(&mut self, host: usize, wish: NodeEvent) {
        self.at(self.now, Event::Node(host, self.hosts[host].run, wish));
    }

    fn crash(&mut self, id: usize, told: bool) {
        if !std::mem::take(&mut self.hosts[id].up) {
            return;
        }
        let life = self.hosts[id].life;
        self.invariants.lives[life].crashed = true;
        self.keep_trail(id);
        if let Some(link) = &mut self.link {
            link.open[id] = false;
        }
        if told {
            let mut ends = [true; 2];
            ends[id] = false;
            self.break_link(ends);
        } else {
            // Power was lost, and with it what the host remembered.
            self.hosts[id].mark = 0;
        }
    }

    fn restart(&mut self, id: usize) {
        if self.hosts[id].up {
            return;
        }
        let run = self.hosts[id].run + 1;
        let name = holder(self.options, id, run);
        let life = self.invariants.begin(name.clone());
        let (mark, random) = (self.hosts[id].mark, self.random.split());
        self.hosts[id] = Host::new((id, run), life, name, mark, &self.plan, random);
        self.at(self.now, Event::Node(id, run, NodeEvent::Start));
        // The first packet to the process that is no more is answered with a reset.
        let mut ends = [true; 2];
        ends[id] = false;
        self.break_link(ends);
    }

    /// What waited happens now: each kind in its order, the kinds in any.
    pub(super) fn resume(&mut self, id: usize, run: u64) {
        if self.hosts[id].run != run || !self.hosts[id].up {
            return;
        }
        self.trace(|_| format!("{} goes on", ["A", "B"][id]));
        self.hosts[id].paused = false;
        let salt = self.random.draw();
        for event in std::mem::take(&mut self.hosts[id].deferred) {
            let kind = match event {
                Event::Deliver(..) => 1,
                Event::Tick(..) => 2,
                Event::ClaimAnswered(..) => 3,
                Event::Node(..) => 4,
                _ => 5,
            };
            self.soon(mix(salt ^ kind) % 2_000_000, event);
        }
    }

    /// Keeps what the guest itself can say.
    pub(super) fn keep_trail(&mut self, id: usize) {
        let host = &mut self.hosts[id];
        let Some(engine) = &mut host.engine else {
            return;
        };
        let life = &mut self.invariants.lives[host.life];
        let recording = engine.is_recording();
        let guest = engine.executor();
        life.guest_outputs = recording.then(|| guest.outputs());
        life.trail = std::mem::take(&mut guest.trail);
    }
}
