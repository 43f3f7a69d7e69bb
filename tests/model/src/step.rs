//! What an action does to the world.

#![forbid(unsafe_code)]

use crate::action::{Action, Fault};
use crate::guest::{Guest, output};
use crate::host::{Fate, Host, TICK_NS, holder};
use crate::invariants::{self, Broken};
use crate::sabotage::Sabotage;
use crate::world::{Answer, Direction, Link, Parcel, Request, World};
use arbiter::register::{Claim, Holder, Outcome};
use logging_channel::host_time::HostTime;
use logging_channel::message::Message;
use vmm::replication::engine::{Emitted, Offer};
use vmm::replication::executor::Produced;
use vmm::replication::node::{ArbiterReply, NodeCommand, NodeEvent};
use vmm::replication::role::Role;

/// How long a host sleeps.
const SLEEP_NS: u64 = 3_600_000_000_000;

/// A world and how it is broken.
pub struct Stepper<'a> {
    /// The world.
    pub world: &'a mut World,
    /// What is broken on purpose.
    pub sabotage: Sabotage,
}

/// All processes start.
pub fn boot(world: &mut World, sabotage: Sabotage) {
    let hosts = world.hosts.len();
    let mut stepper = Stepper { world, sabotage };
    (0..hosts).for_each(|id| stepper.node(id, NodeEvent::Start));
}

impl Stepper<'_> {
    /// Takes one step.
    pub fn act(&mut self, action: &Action) {
        self.act_once(action);
        if !self.world.lagging {
            (0..self.world.hosts.len()).for_each(|id| self.catch_up(id));
        }
        self.world.links.retain(|link| link.open != [false; 2]);
        if !invariants::output_rule(self.world) {
            self.world.breaks(Broken::OutputRule);
        }
    }

    fn act_once(&mut self, action: &Action) {
        match action {
            Action::Connect(id) => self.connect(*id),
            Action::Deliver(id) => self.deliver(*id),
            Action::Engine(id) => self.engine(*id),
            Action::Report(id) => {
                if let Some(items) = self.world.host(*id).reports.pop_front() {
                    self.node(*id, NodeEvent::Emitted(items));
                }
            }
            Action::Produce(id) => self.produce(*id),
            Action::Arbiter(index) => {
                if let Some(request) = self.world.requests.iter().nth(*index).cloned() {
                    self.world.requests.remove(&request);
                    self.arbiter(request);
                }
            }
            Action::Answer(index) => self.answer(*index),
            Action::Tick(id) => {
                let host = self.world.host(*id);
                host.now = host.now.plus_ns(TICK_NS);
                host.wake_at = host.wake_at.filter(|at| *at > host.now);
                self.node(*id, NodeEvent::Tick);
            }
            Action::Fault(fault) => {
                self.world.faults_left = self.world.faults_left.saturating_sub(1);
                self.fault(fault);
            }
        }
    }

    /// The guest's thread does all there is to do for it.
    fn catch_up(&mut self, id: usize) {
        loop {
            let host = &self.world.hosts[id];
            if host.fate != Fate::Running {
                return;
            }
            if !host.reports.is_empty() && host.node.accepts_emitted() {
                self.act_once(&Action::Report(id));
            } else if !host.offers.is_empty() {
                self.act_once(&Action::Engine(id));
            } else {
                return;
            }
        }
    }

    /// Gives the node an event and does what it says.
    fn node(&mut self, id: usize, event: NodeEvent) {
        let host = self.world.host(id);
        if host.fate != Fate::Running {
            return;
        }
        let commands = host.node.handle(host.now, event);
        host.mark = host.mark.max(host.node.generation());
        host.paired |= matches!(host.node.role(), Role::Protected | Role::Following);
        invariants::after(self.world, id);
        for command in commands {
            self.command(id, command);
        }
    }

    fn command(&mut self, id: usize, command: NodeCommand) {
        match command {
            NodeCommand::Send(message) => self.send(id, Parcel::Message(Box::new(message))),
            NodeCommand::CloseLink { .. } => self.close(id),
            NodeCommand::Claim { expected, new } => self.claim(id, expected, new),
            NodeCommand::Release(output) => self.release(id, &output),
            NodeCommand::Engine(Offer::Throttle { .. }) => {}
            NodeCommand::Engine(offer) => {
                let offers = &mut self.world.host(id).offers;
                // The order to finish, given again before the engine looked, is one order.
                if offers.back() != Some(&offer) {
                    offers.push_back(offer);
                }
            }
            NodeCommand::StartGuest { generation, .. } => {
                self.world.guests_started += 1;
                if self.world.guests_started > 1 {
                    self.world.breaks(Broken::OneExecutor);
                }
                let host = self.world.host(id);
                let (guest, first) = Guest::start(host.life, generation);
                host.guest = Some(guest);
                host.reports.push_back(vec![first]);
            }
            NodeCommand::Halted { reason } => self.over(id, Fate::Halted(reason)),
            NodeCommand::Ended(_) => self.over(id, Fate::Ended),
            NodeCommand::WakeAt(at) => self.world.host(id).wake_at = Some(at),
            // Reading pages while the guest runs changes nothing for a node: it is done at once.
            NodeCommand::BeginTransfer { attempt } => {
                self.node(id, NodeEvent::TransferReady { attempt });
            }
            NodeCommand::EndTransfer | NodeCommand::Announce | NodeCommand::Note(_) => {}
        }
    }

    fn over(&mut self, id: usize, fate: Fate) {
        let host = self.world.host(id);
        host.fate = fate;
        let stays = invariants::stays_over(host);
        self.clean_up(id);
        if !stays {
            self.world.breaks(Broken::LoserHalted);
        }
        if invariants::winner_was_refused(self.world) {
            self.world.breaks(Broken::WinnerWins);
        }
    }

    /// What a process that is over had is of no use to anybody.
    fn clean_up(&mut self, id: usize) {
        let host = self.world.host(id);
        host.guest = None;
        host.offers.clear();
        host.reports.clear();
        host.request = None;
        host.wake_at = None;
        let life = host.life;
        self.world.answers.retain(|answer| answer.life != life);
    }

    fn connect(&mut self, id: usize) {
        if self.world.hosts[0].role() == Some(Role::Solo) {
            self.world.transfers_left = self.world.transfers_left.saturating_sub(1);
        }
        self.world.links.push(Link {
            backup: id,
            open: [true; 2],
            towards: [Direction::default(), Direction::default()],
        });
        self.node(0, NodeEvent::PeerConnected);
        self.node(id, NodeEvent::PeerConnected);
    }

    /// Equal heartbeats behind one another count as one.
    fn send(&mut self, from: usize, parcel: Parcel) {
        let Some((link, end)) = self.world.link_of(from) else {
            return;
        };
        let link = &mut self.world.links[link];
        let towards = &mut link.towards[1 - end];
        if !link.open[1 - end] || towards.dead {
            return;
        }
        let idle = matches!(
            &parcel,
            Parcel::Message(message) if matches!(**message, Message::Heartbeat(_) | Message::Ack(_))
        );
        if !(idle && towards.queue.back() == Some(&parcel)) {
            towards.queue.push_back(parcel);
        }
    }

    fn close(&mut self, id: usize) {
        self.send(id, Parcel::End);
        if let Some((link, end)) = self.world.link_of(id) {
            let link = &mut self.world.links[link];
            link.open[end] = false;
            link.towards[end].queue.clear();
        }
    }

    fn deliver(&mut self, id: usize) {
        let Some((link, end)) = self.world.link_of(id) else {
            return;
        };
        let link = &mut self.world.links[link];
        match link.towards[end].queue.pop_front() {
            Some(Parcel::Message(message)) => self.node(id, NodeEvent::PeerMessage(*message)),
            Some(Parcel::End) => {
                link.open[end] = false;
                self.node(id, NodeEvent::PeerDisconnected);
            }
            None => {}
        }
    }

    /// The guest's thread takes one offer.
    fn engine(&mut self, id: usize) {
        let sabotage = self.sabotage;
        let host = self.world.host(id);
        let Some(offer) = host.offers.pop_front() else {
            return;
        };
        if let Some(loaded) = host.load(&offer) {
            host.reports.extend(loaded.map(|loaded| vec![loaded]));
            return;
        }
        if host.guest.is_none() {
            host.guest = Some(Guest::replaying());
        }
        let (Some(guest), life) = (&mut host.guest, host.life) else {
            return;
        };
        if sabotage == Sabotage::SkipLog && matches!(offer, Offer::Records(_)) {
            guest.skip(&offer);
            return;
        }
        let emitted = guest.offer(life, offer, sabotage == Sabotage::DrainedOnce);
        if !emitted.is_empty() && host.reports.back() != Some(&emitted) {
            host.reports.push_back(emitted);
        }
    }

    fn produce(&mut self, id: usize) {
        let leak = self.sabotage == Sabotage::ReleaseEarly;
        self.world.outputs_left = self.world.outputs_left.saturating_sub(1);
        let host = self.world.host(id);
        let life = host.life;
        let Some(guest) = &mut host.guest else { return };
        let index = guest.past().len();
        let emitted = guest.produce(life);
        if leak && host.node.role() == Role::Protected {
            self.release(id, &output(index, life));
        }
        self.node(id, NodeEvent::Emitted(vec![emitted]));
    }

    fn release(&mut self, id: usize, output: &Produced) {
        let [index, life] = output.bytes[..] else {
            return self.world.breaks(Broken::OutputRule);
        };
        let host = self.world.host(id);
        let twice = host.released.is_some_and(|last| last >= index);
        host.released = Some(index);
        let over = host.fate != Fate::Running;
        self.world.released.insert((index, life));
        if twice && self.sabotage != Sabotage::ReleaseEarly {
            self.world.breaks(Broken::OutputRule);
        }
        if over {
            self.world.breaks(Broken::LoserHalted);
        }
    }

    fn claim(&mut self, id: usize, expected: u64, new: u64) {
        let skip = self.sabotage == Sabotage::SkipClaim;
        let host = self.world.host(id);
        host.requests += 1;
        host.request = Some(host.requests);
        let (life, number) = (host.life, host.requests);
        if skip && host.node.role() == Role::GoingLive {
            let reply = ArbiterReply::Granted { generation: new };
            return self.world.answers.push(Answer {
                host: id,
                life,
                number,
                reply,
            });
        }
        let holder = holder(id, host.run, self.sabotage);
        self.world.requests.insert(Request {
            host: id,
            life,
            number,
            holder,
            expected,
            new,
        });
    }

    /// The arbiter decides, with the product's register.
    fn arbiter(&mut self, request: Request) {
        let claim = Holder::new(request.holder)
            .and_then(|holder| Claim::new(request.expected, request.new, holder));
        let Ok(claim) = claim else {
            return self.world.breaks(Broken::WinnerWins);
        };
        let before = self.world.register.clone();
        let won_before = before.last_granted() == Some(&claim);
        let mut outcome = self.world.register.claim(&claim);
        if won_before && self.sabotage == Sabotage::RefuseRetry {
            let (generation, holder) = (before.generation(), before.holder().cloned());
            outcome = Outcome::Refused { generation, holder };
        }
        if self.world.register != before && self.sabotage == Sabotage::ForgetGeneration {
            self.world.register_before = Some(before);
        }
        if won_before && outcome != Outcome::Granted {
            self.world.breaks(Broken::WinnerWins);
        }
        let reply = match outcome {
            Outcome::Granted => ArbiterReply::Granted {
                generation: request.new,
            },
            Outcome::Refused { generation, holder } => ArbiterReply::Refused {
                generation,
                holder: holder.map_or(String::new(), |holder| holder.as_str().to_owned()),
            },
        };
        // Only the process that asked, if it still waits for this very answer, can be told.
        let host = &self.world.hosts[request.host];
        if host.life == request.life && host.request == Some(request.number) {
            self.world.answers.push(Answer {
                host: request.host,
                life: request.life,
                number: request.number,
                reply,
            });
        }
    }

    fn answer(&mut self, index: usize) {
        let answer = self.world.answers.remove(index);
        let host = self.world.host(answer.host);
        if host.life != answer.life || host.request != Some(answer.number) {
            return;
        }
        host.request = None;
        let reply = match self.sabotage {
            Sabotage::NeverAnswer => ArbiterReply::Unreachable,
            _ => answer.reply,
        };
        let number = answer.number;
        self.world
            .answers
            .retain(|other| other.life != answer.life || other.number != number);
        self.node(answer.host, NodeEvent::Arbiter(reply));
    }

    fn fault(&mut self, fault: &Fault) {
        match fault {
            Fault::Crash { host, told } => self.crash(*host, *told),
            Fault::Restart(id) => self.restart(*id),
            Fault::Sleep(id) => {
                let host = self.world.host(*id);
                host.now = HostTime(host.now.0 + SLEEP_NS);
            }
            Fault::Cut(link, told) => {
                let link = &mut self.world.links[*link];
                for (end, direction) in link.towards.iter_mut().enumerate() {
                    direction.queue.clear();
                    direction.dead = true;
                    if told[end] {
                        direction.queue.push_back(Parcel::End);
                    }
                }
            }
            Fault::Drop(id) | Fault::Duplicate(id) => {
                self.world.unfaithful = true;
                if let Some((link, end)) = self.world.link_of(*id) {
                    let queue = &mut self.world.links[link].towards[end].queue;
                    let first = queue.front().cloned();
                    match fault {
                        Fault::Drop(_) => drop(queue.pop_front()),
                        _ => first
                            .into_iter()
                            .for_each(|parcel| queue.push_front(parcel)),
                    }
                }
            }
            Fault::Repeat(index) => {
                if let Some(request) = self.world.requests.iter().nth(*index).cloned() {
                    self.arbiter(request);
                }
            }
            Fault::Timeout(id) => {
                let host = self.world.host(*id);
                host.request = None;
                let life = host.life;
                self.world.answers.retain(|answer| answer.life != life);
                self.node(*id, NodeEvent::Arbiter(ArbiterReply::Unreachable));
            }
            Fault::Stop(id) => self.node(*id, NodeEvent::OperatorStop),
            Fault::Diverge(id) => self.diverge(*id),
            Fault::Forget => {
                if let Some(before) = self.world.register_before.take() {
                    self.world.register = before;
                }
            }
        }
    }

    fn diverge(&mut self, id: usize) {
        let host = self.world.host(id);
        if let Some(guest) = &host.guest {
            let emitted = Emitted::Diverged(Box::new(guest.divergence()));
            host.reports.push_back(vec![emitted]);
        }
    }

    fn crash(&mut self, id: usize, told: bool) {
        if told {
            self.close(id);
        } else if let Some((link, end)) = self.world.link_of(id) {
            self.world.links[link].open[end] = false;
        }
        let host = self.world.host(id);
        host.fate = Fate::Crashed;
        if !told {
            // Power was lost, and with it what the host remembered.
            host.mark = 0;
        }
        self.clean_up(id);
    }

    fn restart(&mut self, id: usize) {
        let (before, life) = (&self.world.hosts[id], self.world.lives);
        let again = Host::new(id, before.run + 1, life, before.mark, self.sabotage);
        self.world.lives += 1;
        self.world.hosts[id] = std::sync::Arc::new(again);
        // The first packet to the process that is no more is answered with a reset.
        for link in &mut self.world.links {
            let end = usize::from(id != 0);
            if (end == 0 || link.backup == id) && !link.open[end] && link.open[1 - end] {
                let queue = &mut link.towards[1 - end].queue;
                if queue.back() != Some(&Parcel::End) {
                    queue.push_back(Parcel::End);
                }
            }
        }
        self.node(id, NodeEvent::Start);
    }
}
