//! A replicated virtual machine in a lab: its configuration, its two processes, what they say.

use crate::arbiter::Arbiter;
use crate::host::STATE_DIR;
use crate::lab::{GUEST_INITRAMFS, GUEST_KERNEL, Lab, Side, UNDERSTUDY};
use crate::netns::address;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;
use vmm::replication::transfer_watch::TransferStatus;

/// The virtual machine's name, its key at the arbiter.
pub const VM: &str = "witness";

/// Where the configuration is in a host; the same bytes in both.
pub const CONFIG: &str = "/run/host/state/understudy.toml";

/// Where the product writes what it has to say, on the evidence disk.
pub const OUTPUT: &str = "/run/host/state/understudy.out";

/// Directory of the log's segments, on the evidence disk.
pub const LOG_DIR: &str = "/run/host/state/log";

/// Time for a status, on a machine that is busy.
const STATUS_LIMIT: Duration = Duration::from_secs(30);

/// Time between two questions.
const INTERVAL: Duration = Duration::from_millis(50);

/// Execution clocks that can be asked for.
pub const CLOCKS: [&str; 3] = ["exits", "branches", "auto"];

/// Where a host has its certificate, in a pair in TLS.
pub const TLS_DIR: &str = "/run/host/state/tls";

/// How a pair is set up.
#[derive(Debug, Clone)]
pub struct PairOptions {
    /// `exits`, `branches` or `auto`.
    pub clock: String,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// What the guest does (`understudy.workload` of the guest image).
    pub workload: String,
    /// More words for the guest's kernel command line.
    pub cmdline: String,
    /// Interval of heartbeats, in milliseconds.
    pub heartbeat_ms: u32,
    /// Silence after which the other host is suspected, in milliseconds.
    pub suspect_ms: u32,
    /// Longest time between two marks, in milliseconds.
    pub mark_ms: u32,
    /// Longest wait for a guest that makes no exit (exit clock), in milliseconds; 0 means for ever.
    pub stall_ms: u32,
    /// How often a replay of the log can be saved, in milliseconds; 0 means never.
    pub settle_ms: u32,
    /// Compare all guest memory at every n-th mark; 0 means never.
    pub memory_every: u32,
    /// Keep the log on the evidence disk.
    pub log: bool,
    /// Whether the logging channel is in TLS, with certificates in [`TLS_DIR`] named after the sides.
    pub tls: bool,
    /// A command that has to succeed before a side goes live or on alone.
    pub fence: Option<String>,
    /// How strictly the sides' system calls are judged (`--confine`).
    pub confine: String,
    /// A side whose copy is over stands by for another, instead of ending.
    pub stand_by: bool,
    /// The third host may be invited, too.
    pub spare: bool,
    /// Sabotage: from this record on the backup's copy is given something else, once.
    pub diverge_from: Option<u64>,
    /// Sabotage: a side's process dies at this moment of a transfer (`--die-at`).
    pub die_at: Option<(Side, &'static str)>,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            clock: "exits".into(),
            memory_mib: 64,
            workload: "idle".into(),
            cmdline: String::new(),
            heartbeat_ms: 20,
            suspect_ms: SUSPECT_MS,
            mark_ms: 20,
            stall_ms: STALL_MS,
            settle_ms: 0,
            memory_every: 0,
            log: true,
            tls: false,
            fence: None,
            confine: "enforced".into(),
            stand_by: false,
            spare: false,
            diverge_from: None,
            die_at: None,
        }
    }
}

/// Two emulated hosts, a client and the rig share few processors, and on a busy machine a host may
/// get none for almost two seconds without being dead (1.9 s were seen). The product's default
/// is 120 ms; what is measured (demo, bench) is measured with less than this.
const SUSPECT_MS: u32 = 2_500;

/// An emulated processor is some twenty times slower than a real one: a stretch that is long for a guest
/// at the product's default (50 ms) is a usual one here.
const STALL_MS: u32 = 200;

impl PairOptions {
    /// Arguments that have a side's process die.
    fn doom_of(&self, side: Side) -> Vec<&'static str> {
        match self.die_at {
            Some((doomed, moment)) if doomed == side => vec!["--die-at", moment],
            _ => Vec::new(),
        }
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> String {
        let Self {
            clock,
            memory_mib,
            workload,
            cmdline,
            ..
        } = self;
        let Self {
            heartbeat_ms,
            suspect_ms,
            mark_ms,
            memory_every,
            stall_ms,
            settle_ms,
            ..
        } = self;
        let (guest, channel, url) = (address::GUEST, address::PRIMARY_LOG, Arbiter::url());
        let spare = self.spare.then_some(Side::Spare);
        let standbys = Side::BOTH.into_iter().chain(spare);
        let standbys: Vec<_> = standbys
            .map(|side| format!("{:?}", self.standby_address(side)))
            .collect();
        let standbys = standbys.join(", ");
        let more = self.more_sections();
        format!(
            "[vm]\n\
             name = \"{VM}\"\n\
             memory_mib = {memory_mib}\n\
             kernel = \"{GUEST_KERNEL}\"\n\
             initramfs = \"{GUEST_INITRAMFS}\"\n\
             cmdline = \"understudy.ip={guest}/{} understudy.workload={workload} {cmdline}\"\n\
             [network]\n\
             tap = \"tap0\"\n\
             announce = [\"{guest}\"]\n\
             [console]\n\
             mode = \"file\"\n\
             path = \"{STATE_DIR}/console.log\"\n\
             [channel]\n\
             address = \"{channel}:7071\"\n\
             standbys = [{standbys}]\n\
             heartbeat_ms = {heartbeat_ms}\n\
             suspect_ms = {suspect_ms}\n\
             mark_ms = {mark_ms}\n\
             [arbiter]\n\
             url = \"{url}\"\n\
             [tls]\n\
             plain_text = true\n\
             {more}\
             [clock]\n\
             kind = \"{clock}\"\n\
             stall_ms = {stall_ms}\n\
             [verify]\n\
             memory_every = {memory_every}\n\
             settle_ms = {settle_ms}\n\
             [control]\n\
             socket = \"/run/host/understudy.sock\"\n",
            address::PREFIX,
        )
    }

    /// Where a side stands by when its copy is over: on the log link, or, where the third host has to reach it,
    /// on the service network.
    fn standby_address(&self, side: Side) -> String {
        let host = if self.spare {
            side.address()
        } else {
            side.log_address()
        };
        format!("{host}:7072")
    }

    /// The rest of `[tls]`, and the sections that not every pair has.
    fn more_sections(&self) -> String {
        let tls = if self.tls {
            format!(
                "certificate = \"{TLS_DIR}/host.pem\"\nkey = \"{TLS_DIR}/host.key\"\n\
                 authority = \"{TLS_DIR}/ca.pem\"\nprimary = [\"primary\"]\nbackup = [\"backup\"]\n"
            )
        } else {
            String::new()
        };
        let log = if self.log {
            format!("[log]\ndir = \"{LOG_DIR}\"\n")
        } else {
            String::new()
        };
        let fence = self.fence.as_ref();
        let fence = fence.map_or_else(String::new, |command| {
            format!("[fence]\ncommand = [{command:?}]\n")
        });
        tls + &fence + &log
    }
}

/// What one side says of itself (a part of `understudy status --json`).
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// The exact state, such as `protected`, `following`, `solo`, `halted`.
    pub role: String,
    /// Generation held or followed.
    pub generation: u64,
    /// Whether the peer is connected.
    pub linked: bool,
    /// Positions in the log.
    pub pointers: Pointers,
    /// Primary: age of the oldest record that the backup has not replayed, in nanoseconds.
    pub lag_ns: u64,
    /// Primary: the last transfer of the guest's state to a new backup that began.
    pub last_transfer: Option<TransferStatus>,
    /// Why it halted.
    pub halted: Option<String>,
    /// Execution clock in use: `exits` or `branches`.
    #[serde(skip)]
    pub clock: String,
    /// Why that one.
    #[serde(skip)]
    pub clock_why: String,
    /// Copies of this process that diverged.
    #[serde(skip)]
    pub diverged: u64,
}

impl Status {
    /// Reads what `understudy status --json` prints: the side's own under `node`, or at the top.
    ///
    /// # Errors
    /// When it is not that.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let mut value: serde_json::Value = serde_json::from_slice(json)?;
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let (clock, clock_why) = (text("clock"), text("clock_why"));
        let diverged = value["lives"]["diverged"].as_u64().unwrap_or(0);
        let node = value.get_mut("node").map(serde_json::Value::take);
        let status = serde_json::from_value(node.unwrap_or(value))?;
        Ok(Self {
            clock,
            clock_why,
            diverged,
            ..status
        })
    }
}

/// Positions in the log: the index of the first record not yet so-and-so.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Pointers {
    /// Primary: made.
    pub recorded: u64,
    /// Primary: in the backup's memory.
    pub acknowledged: u64,
    /// Backup: in memory here.
    pub received: u64,
    /// Replayed by the backup.
    pub replayed: u64,
    /// Every output below has left.
    pub released: u64,
}

/// The pair's processes; they end with the lab's reset.
#[derive(Debug)]
pub struct Pair {
    processes: BTreeMap<Side, u32>,
}

impl Pair {
    /// Starts the arbiter and both sides. Returns at once: nothing is ready yet.
    ///
    /// # Errors
    /// When something cannot be started.
    pub fn start(lab: &mut Lab, options: &PairOptions) -> Result<Self> {
        lab.arbiter.start()?;
        let mut processes = BTreeMap::new();
        for side in Side::BOTH {
            processes.insert(side, spawn(lab, side, options)?);
        }
        Ok(Self { processes })
    }

    /// [`Pair::start`], then waits until the guest runs and the backup follows.
    ///
    /// # Errors
    /// When that does not happen within `limit`.
    pub fn start_protected(lab: &mut Lab, options: &PairOptions, limit: Duration) -> Result<Self> {
        let pair = Self::start(lab, options)?;
        pair.wait_role(lab, Side::Primary, "protected", limit)?;
        pair.wait_role(lab, Side::Backup, "following", limit)?;
        Ok(pair)
    }

    /// Starts a standby on a side's host, which has booted again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn stand_by(&mut self, lab: &Lab, side: Side, options: &PairOptions) -> Result<()> {
        let agent = lab.host(side).agent()?;
        agent.put(CONFIG, 0o644, options.config().as_bytes())?;
        let listen = options.standby_address(side);
        let mut argv = vec![
            UNDERSTUDY, "standby", "--config", CONFIG, "--listen", &listen,
        ];
        argv.extend(options.doom_of(side));
        argv.extend(["--confine", &options.confine]);
        let pid = agent.spawn(&argv, OUTPUT)?;
        self.processes.insert(side, pid);
        Ok(())
    }

    /// Has a side hand the guest over.
    ///
    /// # Errors
    /// When the product refuses.
    pub fn hand_over(&self, lab: &Lab, side: Side) -> Result<()> {
        let argv = [UNDERSTUDY, "handover", "--config", CONFIG];
        lab.host(side)
            .agent()?
            .exec(&argv, STATUS_LIMIT)?
            .success()?;
        Ok(())
    }

    /// Asks a side for its status.
    ///
    /// # Errors
    /// When the host is dead, or the product does not answer.
    pub fn status(&self, lab: &Lab, side: Side) -> Result<Status> {
        let argv = [UNDERSTUDY, "status", "--json", "--config", CONFIG];
        let answer = lab
            .host(side)
            .agent()?
            .exec(&argv, STATUS_LIMIT)?
            .success()?;
        Status::parse(&answer.stdout).with_context(|| format!("{side}: {}", answer.text()))
    }

    /// Has the product itself wait until a side has a backup (`understudy status --wait`).
    ///
    /// # Errors
    /// When it does not within `limit`, or the product says that it never will.
    pub fn wait_protected(&self, lab: &Lab, side: Side, limit: Duration) -> Result<Status> {
        let argv = [UNDERSTUDY, "status", "--wait", "--json", "--config", CONFIG];
        let answer = lab.host(side).agent()?.exec(&argv, limit);
        let answer = answer.and_then(|answer| answer.success());
        let answer = answer.with_context(|| format!("{side} said:\n{}", said(lab, side)))?;
        Status::parse(&answer.stdout).with_context(|| format!("{side}: {}", answer.text()))
    }

    /// Waits until a side is in the state `role`.
    ///
    /// # Errors
    /// When it is not within `limit`, its process ends, or it halts instead; with what it said.
    pub fn wait_role(&self, lab: &Lab, side: Side, role: &str, limit: Duration) -> Result<Status> {
        let mut last = String::from("no answer");
        let result = crate::wait::until(&format!("{side} to be {role}"), limit, INTERVAL, || {
            match self.status(lab, side) {
                Ok(status) if status.role == role => return Ok(Some(status)),
                Ok(status) if status.role == "halted" => {
                    bail!("{side} halted: {}", status.halted.unwrap_or_default());
                }
                Ok(status) => last = format!("{} in generation {}", status.role, status.generation),
                Err(error) => {
                    last = format!("{error:#}");
                    if let Some(code) = self.ended(lab, side)? {
                        bail!("{side} ended with status {code}");
                    }
                }
            }
            Ok(None)
        });
        result.with_context(|| format!("last seen: {last}; it said:\n{}", said(lab, side)))
    }

    /// Waits until a side has halted for good, whether its process still runs or not, and returns
    /// the last status it gave, if any.
    ///
    /// # Errors
    /// When it does not within `limit`, or ends in any other way.
    pub fn wait_halted(&self, lab: &Lab, side: Side, limit: Duration) -> Result<Option<Status>> {
        let result = crate::wait::until(&format!("{side} to halt"), limit, INTERVAL, || match self
            .status(lab, side)
        {
            Ok(status) if status.role == "halted" => Ok(Some(Some(status))),
            Ok(_) => Ok(None),
            Err(_) => Ok(self.ended(lab, side)?.map(|_| None)),
        });
        result.with_context(|| format!("{side} said:\n{}", said(lab, side)))
    }

    /// Kills a side's process; its host lives.
    ///
    /// # Errors
    /// When the host is dead.
    pub fn kill_process(&self, lab: &Lab, side: Side) -> Result<()> {
        let pid = self.pid(side)?;
        let agent = lab.host(side).agent()?;
        let kill = format!("kill -9 {pid}");
        agent.exec(&["sh", "-c", &kill], STATUS_LIMIT)?.success()?;
        self.wait_ended(lab, side)
    }

    /// Waits until a side's process has ended, however it did.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_ended(&self, lab: &Lab, side: Side) -> Result<()> {
        let limit = 2 * STATUS_LIMIT;
        let end = || self.ended(lab, side);
        let what = format!("{side}'s process to end");
        let ended = crate::wait::until(&what, limit, INTERVAL, end);
        ended.map(drop).with_context(|| said(lab, side))
    }

    /// Number of a side's process, on its host.
    ///
    /// # Errors
    /// When it was not started.
    pub fn pid(&self, side: Side) -> Result<u32> {
        let pid = self.processes.get(&side);
        Ok(*pid.with_context(|| format!("nothing was started on the {side}'s host"))?)
    }

    /// The exit status of a side's process, once it has ended.
    ///
    /// # Errors
    /// When the host is dead.
    pub fn ended(&self, lab: &Lab, side: Side) -> Result<Option<i32>> {
        lab.host(side).agent()?.poll(self.pid(side)?)
    }
}

fn spawn(lab: &Lab, side: Side, options: &PairOptions) -> Result<u32> {
    let agent = lab.host(side).agent()?;
    agent.put(CONFIG, 0o644, options.config().as_bytes())?;
    let standby = options.standby_address(side);
    let mut argv = vec![UNDERSTUDY, side.name(), "--config", CONFIG];
    argv.extend(["--confine", &options.confine]);
    if options.stand_by {
        argv.extend(["--standby", &standby]);
    }
    let from = options.diverge_from.map(|record| record.to_string());
    if let (Side::Backup, Some(from)) = (side, &from) {
        argv.extend(["--diverge-from", from]);
    }
    argv.extend(options.doom_of(side));
    agent.spawn(&argv, OUTPUT)
}

/// The end of what a side's process printed.
fn said(lab: &Lab, side: Side) -> String {
    const LINES: &str = "30";
    let tail = lab
        .host(side)
        .agent()
        .and_then(|agent| agent.exec(&["tail", "-n", LINES, OUTPUT], STATUS_LIMIT));
    tail.map_or_else(|error| format!("{error:#}"), |done| done.text())
}

/// The same virtual machine on one host, unreplicated (`understudy run`).
#[derive(Debug)]
pub struct Alone {
    side: Side,
    pid: u32,
}

impl Alone {
    /// Starts it on the primary's host.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(lab: &Lab, options: &PairOptions) -> Result<Self> {
        Self::start_on(lab, Side::Primary, options, &[])
    }

    /// Starts it on a side's host, from a snapshot that is there.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn resume(lab: &Lab, side: Side, options: &PairOptions, file: &str) -> Result<Self> {
        Self::start_on(lab, side, options, &["--from", file])
    }

    fn start_on(lab: &Lab, side: Side, options: &PairOptions, more: &[&str]) -> Result<Self> {
        let agent = lab.host(side).agent()?;
        agent.put(CONFIG, 0o644, options.config().as_bytes())?;
        let confine = options.confine.as_str();
        let run = [UNDERSTUDY, "run", "--config", CONFIG, "--confine", confine];
        let argv = [&run[..], more].concat();
        let pid = agent.spawn(&argv, OUTPUT)?;
        Ok(Self { side, pid })
    }

    /// Waits until the guest has powered itself off.
    ///
    /// # Errors
    /// When it does not within `limit`, or ends otherwise; with what it said.
    pub fn wait_ended(&self, lab: &Lab, limit: Duration) -> Result<()> {
        let agent = lab.host(self.side).agent()?;
        let code = crate::wait::until("the guest to end", limit, INTERVAL, || agent.poll(self.pid))
            .with_context(|| said(lab, self.side))?;
        if code != 0 {
            bail!(
                "`understudy run` ended with {code}:\n{}",
                said(lab, self.side)
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_product_takes_the_configuration() {
        for log in [false, true] {
            let options = PairOptions {
                log,
                tls: !log,
                ..PairOptions::default()
            };
            let parsed = vmm::config::parse(&options.config(), Path::new(CONFIG));
            assert!(parsed.is_ok(), "{parsed:?}");
        }
    }
}
