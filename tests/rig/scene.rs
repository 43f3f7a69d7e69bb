//! What most drills have in common: a protected pair, a client on it, and the final reckoning.

use crate::evidence::{self, Evidence};
use crate::fault::Fault;
use crate::lab::{Lab, Side};
use crate::netns::Namespace;
use crate::observation::{Load, Observation, Order};
use crate::oracle::Oracle;
use crate::pair::{Pair, PairOptions, Status, VM};
use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;

/// Time for the guest to boot and the backup to follow; a few seconds on an idle machine.
pub const PROTECTED_LIMIT: Duration = Duration::from_secs(120);

/// Time for one side to notice a failure, claim and go on; well under a second on an idle machine.
pub const GO_LIVE_LIMIT: Duration = Duration::from_secs(60);

/// Time for requests to be answered when all is well.
pub const PROGRESS_LIMIT: Duration = Duration::from_secs(60);

/// Requests after which a service counts as up.
const PROGRESS: u64 = 50;

/// Has the hosts that are on put on disk what they logged so far. A host that is killed later loses what it had
/// not written back by itself, and a log that had only just begun would be lost whole: then there
/// would be nothing to compare.
///
/// # Errors
/// When a host does not answer.
pub fn keep_so_far(lab: &Lab) -> Result<()> {
    for side in lab.sides() {
        if let Ok(agent) = lab.host(side).agent() {
            agent.exec(&["sync"], PROGRESS_LIMIT)?.success()?;
        }
    }
    Ok(())
}

/// A running pair with a client.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The lab.
    pub lab: &'a mut Lab,
    /// The pair.
    pub pair: Pair,
    /// The client.
    pub client: Oracle,
}

impl<'a> Scene<'a> {
    /// Starts the pair, waits until it is protected, connects a client and waits until it is served.
    ///
    /// # Errors
    /// When any of it fails.
    pub fn open(lab: &'a mut Lab, options: &PairOptions, load: &Load) -> Result<Self> {
        let pair = Pair::start_protected(lab, options, PROTECTED_LIMIT)?;
        let client = Oracle::start(&Namespace::named("client"), load)?;
        client.wait_connected()?;
        let mut scene = Self { lab, pair, client };
        scene.wait_served()?;
        keep_so_far(scene.lab)?;
        Ok(scene)
    }

    /// Waits until some more requests have been acknowledged.
    ///
    /// # Errors
    /// When they are not in time, or an answer was wrong.
    pub fn wait_served(&mut self) -> Result<Observation> {
        let since = self.client.order(&Order::Tell)?.acknowledged;
        self.client.wait_progress(since, PROGRESS, PROGRESS_LIMIT)
    }

    /// Begins a new phase of the client's report.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn phase(&mut self, name: &str) -> Result<Observation> {
        self.client.order(&Order::Phase(name.into()))
    }

    /// Makes a fault happen.
    ///
    /// # Errors
    /// When the lab does not obey.
    pub fn strike(&mut self, fault: Fault) -> Result<()> {
        fault.strike(self.lab).with_context(|| fault.to_string())
    }

    /// Waits until a side runs the guest alone, in generation 2.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_solo(&self, side: Side) -> Result<Status> {
        let status = self.pair.wait_role(self.lab, side, "solo", GO_LIVE_LIMIT)?;
        ensure!(
            status.generation == 2,
            "{side} is alone in generation {}",
            status.generation
        );
        Ok(status)
    }

    /// Waits until a side has halted, and checks that it let nothing out that the survivor does not
    /// know of.
    ///
    /// # Errors
    /// When it has not, or did.
    pub fn wait_harmless(&self, side: Side) -> Result<()> {
        let halted = self.pair.wait_halted(self.lab, side, GO_LIVE_LIMIT)?;
        let survivor = self.pair.status(self.lab, side.other())?;
        if let Some(halted) = halted {
            let known = survivor.pointers.received.max(survivor.pointers.recorded);
            ensure!(
                halted.pointers.released <= known.max(halted.pointers.acknowledged),
                "{side} halted having released output below {} of which the survivor knows {known}",
                halted.pointers.released
            );
        }
        Ok(())
    }

    /// The register must say that `generation` is the current one.
    ///
    /// # Errors
    /// When it says something else, or the arbiter does not answer.
    pub fn check_register(&self, generation: u64) -> Result<()> {
        let (found, holder) = self.lab.arbiter.register(VM)?;
        ensure!(
            found == generation,
            "the register is at generation {found}, held by {holder}"
        );
        Ok(())
    }

    /// Ends the client and gives the verdict: the client's own, and that of the logs.
    ///
    /// # Errors
    /// When the client has a complaint or the logs contradict each other.
    pub fn close(mut self) -> Result<(Observation, Evidence)> {
        let seen = self.client.finish()?;
        let complaints = seen.complaints();
        if !complaints.is_empty() {
            bail!("{}: {seen:?}", complaints.join("; "));
        }
        let copies = self.lab.run_dir().join("evidence");
        let _ = std::fs::remove_dir_all(&copies);
        let evidence = evidence::collect(self.lab, &copies)?;
        evidence.verify()?;
        Ok((seen, evidence))
    }
}
