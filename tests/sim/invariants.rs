//! What must hold in every run, checked from outside the nodes.
//!
//! 1. One guest, at most one side that goes live or goes on alone, and only by the arbiter's grant.
//! 2. A protected primary lets out only output whose record the backup has received; a side lets
//!    output out in log order, each at most once.
//! 3. Whatever either side ever let out is in the survivor's past, at the same log index.
//!    Conversely nothing gets lost: what the survivor's guest sent has left, here or there.
//! 4. Copies are equal: no divergence, and equal digests on arrival at equal exits.
//! 5. When faults have ended, the guest serves its client on one side, unless every copy is gone.
//! 6. A process that is started again on a host that kept its power takes part in no generation older than
//!    the newest that the host has seen.
//! 7. While nothing is wrong nobody is suspected, and the arbiter is asked once, to start.

use super::faults::RUN_END_NS;
use std::collections::{BTreeMap, BTreeSet};
use vmm::replication::node::HaltReason;
use vmm::replication::role::Role;

/// How long before the end the client must have been answered at the latest.
const ANSWERED_NS_MAX: u64 = 500_000_000;

/// Evidence about one run of one process.
#[derive(Debug, Default)]
pub struct Life {
    /// Host and run, for messages.
    pub name: String,
    /// Output this copy produced, with the index of its record.
    outputs: BTreeMap<Vec<u8>, u64>,
    /// Output this copy let out.
    released: Vec<(u64, Vec<u8>)>,
    /// Records that reached this copy's memory.
    pub received: u64,
    /// First log index of its own, while it is the only one.
    alone_from: Option<u64>,
    /// The life whose state this copy began with.
    parent: Option<usize>,
    /// The parent's own [`Life::live_exits`], or what it had from its parent.
    inherited_exits: Option<usize>,
    /// Exits when it became the only one by going live.
    pub live_exits: Option<usize>,
    /// Log indices seen: the next one.
    pub next_index: u64,
    /// Its role now, or when it died.
    pub role: Option<Role>,
    /// Whether it ever had a part in the guest.
    pub took_part: bool,
    /// Lost power.
    pub crashed: bool,
    /// Why it halted.
    pub halted: Option<HaltReason>,
    /// Digests on arrival at exits.
    pub trail: Vec<u64>,
    /// Outputs that the guest counted itself, if it is recorded here to the end.
    pub guest_outputs: Option<usize>,
}

impl Life {
    /// Exits up to which this copy, number `here`, and `other`, number `there`, are one history: a
    /// copy's child differs from it only after the child went live.
    fn exits_shared_with(&self, here: usize, other: &Self, there: usize) -> usize {
        let limits = if self.parent == Some(there) {
            [self.live_exits, None, None, None]
        } else if other.parent == Some(here) {
            [other.live_exits, None, None, None]
        } else {
            [
                self.live_exits,
                other.live_exits,
                self.inherited_exits,
                other.inherited_exits,
            ]
        };
        let lengths = [self.trail.len(), other.trail.len()];
        lengths
            .into_iter()
            .chain(limits.into_iter().flatten())
            .min()
            .unwrap_or(0)
    }

    fn is_dead(&self) -> bool {
        let by_order = [HaltReason::Stopped, HaltReason::HandedOver];
        self.crashed
            || self
                .halted
                .as_ref()
                .is_some_and(|why| by_order.contains(why))
    }

    fn is_live(&self) -> bool {
        !self.crashed && matches!(self.role, Some(Role::Protected | Role::Solo))
    }
}

/// All evidence of one simulation.
#[derive(Debug, Default)]
pub struct Invariants {
    /// Every process that ever ran.
    pub lives: Vec<Life>,
    /// Who was granted which generation.
    pub grants: BTreeMap<u64, String>,
    guests_started: u32,
    /// Requests sent to the arbiter.
    pub claims: u32,
    /// Times a peer was suspected.
    pub suspicions: u32,
    /// Simulated time, told before every event of a node.
    pub now: u64,
    /// Whether processes that are started again stand by.
    pub standbys: bool,
    /// When the guest first ended.
    pub ended_at: Option<u64>,
}

/// A broken invariant.
pub type Violation = String;

impl Invariants {
    /// A process starts.
    pub fn begin(&mut self, name: String) -> usize {
        self.lives.push(Life {
            name,
            ..Life::default()
        });
        self.lives.len() - 1
    }

    /// A guest is made from nothing.
    ///
    /// # Errors
    /// When there already was one.
    pub fn guest_started(&mut self, life: usize) -> Result<(), Violation> {
        self.guests_started += 1;
        if self.guests_started > 1 {
            return Err(format!("{} starts a second guest", self.lives[life].name));
        }
        Ok(())
    }

    /// The arbiter granted `generation`.
    ///
    /// # Errors
    /// When somebody else already has it.
    pub fn granted(&mut self, generation: u64, holder: &str) -> Result<(), Violation> {
        let first = self
            .grants
            .entry(generation)
            .or_insert_with(|| holder.to_owned());
        if first != holder {
            return Err(format!(
                "generation {generation} granted to {first} and to {holder}"
            ));
        }
        Ok(())
    }

    /// `life` begins with the state of `from` before record `next`: its past is that copy's.
    pub fn joined(&mut self, life: usize, from: usize, next: u64) {
        let parent = &self.lives[from];
        let before = parent.outputs.iter().filter(|(_, index)| **index < next);
        let outputs = before
            .map(|(bytes, index)| (bytes.clone(), *index))
            .collect();
        let inherited = parent.live_exits.into_iter().chain(parent.inherited_exits);
        let inherited_exits = inherited.min();
        let child = &mut self.lives[life];
        child.outputs = outputs;
        child.received = next;
        child.next_index = next;
        child.parent = Some(from);
        child.inherited_exits = inherited_exits;
    }

    /// A copy produced output for record `index`.
    pub fn produced(&mut self, life: usize, index: u64, bytes: &[u8]) {
        self.lives[life].outputs.insert(bytes.to_vec(), index);
    }

    /// A process is in this role and generation, on a host that has seen generation `mark`.
    ///
    /// # Errors
    /// When it takes part in an older one.
    pub fn generation_is(&self, role: Role, generation: u64, mark: u64) -> Result<(), Violation> {
        let not_yet = [Role::Idle, Role::Starting, Role::Joining];
        if generation < mark && !role.is_over() && !not_yet.contains(&role) {
            return Err(format!(
                "{role:?} in generation {generation}, on a host that has seen {mark}"
            ));
        }
        Ok(())
    }

    /// The role of a process after an event.
    ///
    /// # Errors
    /// When it may not have become the only one.
    pub fn role_is(&mut self, life: usize, role: Role) -> Result<(), Violation> {
        let before = self.lives[life].role.replace(role);
        if before == Some(role) {
            return Ok(());
        }
        if role == Role::Protected {
            // A new backup has its state: it is not the only one any more.
            self.lives[life].alone_from = None;
        }
        if matches!(role, Role::Protected | Role::Following) {
            self.lives[life].took_part = true;
        }
        if role == Role::Ended {
            self.ended_at.get_or_insert(self.now);
        }
        // A guest that had ended by then is over at once.
        let claimed = matches!(before, Some(Role::Contested | Role::GoingLive));
        if role != Role::Solo && !(role == Role::Ended && claimed) {
            return Ok(());
        }
        let name = self.lives[life].name.clone();
        if self.grants.values().next_back() != Some(&name) {
            return Err(format!(
                "{name} is alone, but the arbiter granted {:?}",
                self.grants
            ));
        }
        self.lives[life].alone_from = Some(self.lives[life].next_index);
        for other in (0..self.lives.len()).filter(|other| *other != life) {
            if self.lives[other].alone_from.is_some() {
                return Err(format!(
                    "{name} and {} were both alone",
                    self.lives[other].name
                ));
            }
            for (index, bytes) in &self.lives[other].released {
                self.check_past(other, *index, bytes, life)?;
            }
        }
        Ok(())
    }

    /// A process let output out. `backup_received`: records in the other side's memory.
    ///
    /// # Errors
    /// When it should not have.
    pub fn released(
        &mut self,
        life: usize,
        bytes: &[u8],
        backup_received: u64,
    ) -> Result<(), Violation> {
        let this = &self.lives[life];
        let Some(index) = this.outputs.get(bytes).copied() else {
            return Err(format!("{} let out what it never produced", this.name));
        };
        if this.released.last().is_some_and(|(last, _)| *last >= index) {
            return Err(format!("{} let out record {index} out of order", this.name));
        }
        if this.alone_from.is_none() && index >= backup_received {
            return Err(format!(
                "{} let out record {index}, its backup has received {backup_received} ({:?})",
                this.name, this.role
            ));
        }
        for other in (0..self.lives.len()).filter(|other| *other != life) {
            if self.lives[other].alone_from.is_some() {
                self.check_past(life, index, bytes, other)?;
            }
        }
        self.lives[life].released.push((index, bytes.to_vec()));
        Ok(())
    }

    /// What `by` let out must be in the past of `survivor`, from before it was alone.
    fn check_past(
        &self,
        by: usize,
        index: u64,
        bytes: &[u8],
        survivor: usize,
    ) -> Result<(), Violation> {
        let (by, survivor) = (&self.lives[by], &self.lives[survivor]);
        let known = survivor.outputs.get(bytes).copied();
        let before = survivor.alone_from.is_none_or(|from| index < from);
        if known == Some(index) && before {
            return Ok(());
        }
        Err(format!(
            "{} let out record {index}, which {} knows as {known:?}, alone from {:?}",
            by.name, survivor.name, survivor.alone_from
        ))
    }

    /// The run is over: copies must be equal, and somebody must serve.
    ///
    /// # Errors
    /// With the first thing that is wrong.
    pub fn finish(&self, calm: bool, answered_at: u64) -> Result<(), Violation> {
        self.check_trails()?;
        self.check_nothing_lost()?;
        self.check_states()?;
        self.check_service(answered_at)?;
        if calm && (self.claims != 1 || self.suspicions != 0 || self.guests_started != 1) {
            return Err(format!(
                "nothing was wrong, yet: {} claims, {} suspicions, {} guests",
                self.claims, self.suspicions, self.guests_started
            ));
        }
        Ok(())
    }

    fn check_trails(&self) -> Result<(), Violation> {
        for (i, a) in self.lives.iter().enumerate() {
            for (j, b) in self.lives.iter().enumerate().skip(i + 1) {
                let common = a.exits_shared_with(i, b, j);
                if let Some(exit) = (0..common).find(|e| a.trail[*e] != b.trail[*e]) {
                    return Err(format!(
                        "{} and {} differ at exit {}",
                        a.name,
                        b.name,
                        exit + 1
                    ));
                }
            }
        }
        Ok(())
    }

    /// Output may leave twice, never not at all.
    fn check_nothing_lost(&self) -> Result<(), Violation> {
        let left: BTreeSet<&[u8]> = self
            .lives
            .iter()
            .flat_map(|life| life.released.iter().map(|(_, bytes)| bytes.as_slice()))
            .collect();
        for life in self.lives.iter().filter(|life| life.is_live()) {
            let logged = life.outputs.len();
            if life.guest_outputs.is_some_and(|sent| sent != logged) {
                let sent = life.guest_outputs;
                return Err(format!(
                    "{}: the guest sent {sent:?}, logged {logged}",
                    life.name
                ));
            }
            let last = life.released.last().map_or(0, |(index, _)| *index);
            let lost = life
                .outputs
                .iter()
                .find(|(bytes, index)| **index <= last && !left.contains(bytes.as_slice()));
            if let Some((_, index)) = lost {
                return Err(format!("{}: record {index} never left", life.name));
            }
        }
        Ok(())
    }

    /// Whether somebody still believes in a partner that is gone.
    #[must_use]
    pub fn somebody_waits(&self) -> bool {
        self.lives.iter().any(|life| self.lacks_partner(life))
    }

    fn lacks_partner(&self, life: &Life) -> bool {
        let partner = match life.role {
            Some(Role::Protected) => Role::Following,
            Some(Role::Following) => Role::Protected,
            _ => return false,
        };
        let up = |other: &&Life| !other.crashed;
        !life.crashed
            && !self
                .lives
                .iter()
                .filter(up)
                .any(|other| other.role == Some(partner))
    }

    /// No side may be left in a state that only passes.
    fn check_states(&self) -> Result<(), Violation> {
        // Whoever hears of the guest's end later needs a moment.
        let just_ended = self
            .ended_at
            .is_some_and(|at| at + ANSWERED_NS_MAX > RUN_END_NS);
        if just_ended {
            return Ok(());
        }
        self.check_protection()?;
        for life in self.lives.iter().filter(|life| !life.crashed) {
            let passing = [
                Role::Starting,
                Role::Contested,
                Role::Finishing,
                Role::GoingLive,
            ];
            if life.role.is_some_and(|role| passing.contains(&role)) {
                return Err(format!("{} is stuck: {:?}", life.name, life.role));
            }
            if self.lacks_partner(life) {
                return Err(format!("{} is {:?}, alone", life.name, life.role));
            }
        }
        Ok(())
    }

    /// Whoever is alone at the end, with somebody standing by since long ago, has failed.
    fn check_protection(&self) -> Result<(), Violation> {
        let at_the_end = |role| {
            let up = self.lives.iter().filter(|life| !life.crashed);
            up.rev().find(move |life| life.role == Some(role))
        };
        match (at_the_end(Role::Solo), at_the_end(Role::Joining)) {
            (Some(alone), Some(standby)) if self.standbys => Err(format!(
                "{} is alone at the end, and {} stands by",
                alone.name, standby.name
            )),
            _ => Ok(()),
        }
    }

    fn check_service(&self, answered_at: u64) -> Result<(), Violation> {
        if self.ended_at.is_some() {
            return Ok(());
        }
        let live: Vec<_> = self.lives.iter().filter(|life| life.is_live()).collect();
        match live[..] {
            [] if self.nobody_could_serve() => Ok(()),
            [] => Err(format!("nobody serves: {}", self.summary())),
            [life] if answered_at + ANSWERED_NS_MAX < RUN_END_NS => Err(format!(
                "{} is live, but the client was last answered at {} ms",
                life.name,
                answered_at / 1_000_000
            )),
            [_] => Ok(()),
            _ => Err(format!("two sides are live: {}", self.summary())),
        }
    }

    /// Whether every copy of the guest is gone for a good reason.
    fn nobody_could_serve(&self) -> bool {
        let last_holder_died = self.grants.values().next_back().is_some_and(|holder| {
            self.lives
                .iter()
                .any(|life| &life.name == holder && life.is_dead())
        });
        let mut took_part = self.lives.iter().filter(|life| life.took_part).peekable();
        if took_part.peek().is_none() {
            return self.lives.iter().any(Life::is_dead);
        }
        took_part.all(|life| match &life.halted {
            _ if life.is_dead() => true,
            Some(HaltReason::NothingReceived) => true,
            Some(HaltReason::Refused { .. }) => last_holder_died,
            _ => false,
        })
    }

    fn summary(&self) -> String {
        let lives: Vec<_> = self
            .lives
            .iter()
            .map(|l| {
                format!(
                    "{} {:?} crashed={} {:?}",
                    l.name, l.role, l.crashed, l.halted
                )
            })
            .collect();
        format!("{lives:?}, grants {:?}", self.grants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_part_in_something_older_than_the_host_has_seen_is_caught() {
        let invariants = Invariants::default();
        assert!(invariants.generation_is(Role::Solo, 1, 2).is_err());
        assert!(invariants.generation_is(Role::Following, 1, 2).is_err());
        // It asks, and is refused; or it has taken part before, and has not any more.
        for role in [Role::Starting, Role::Joining, Role::Halted] {
            assert!(invariants.generation_is(role, 1, 2).is_ok());
        }
        assert!(invariants.generation_is(Role::Solo, 2, 2).is_ok());
    }
}
