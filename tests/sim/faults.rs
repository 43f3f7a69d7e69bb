//! What goes wrong in one run, drawn from its seed before it begins.

use super::random::Random;

const MS: u64 = 1_000_000;
/// No fault begins before this: most runs should have a pair.
const FIRST_NS: u64 = 20 * MS;
/// Every passing fault has ended by then.
pub const FAULTS_END_NS: u64 = 1_200 * MS;
/// The run ends here; the time since [`FAULTS_END_NS`] must be enough to recover.
pub const RUN_END_NS: u64 = 2_400 * MS;

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The host loses power. `told`: its peer's connection is reset, otherwise there is silence.
    Crash {
        /// 0 or 1.
        host: usize,
        /// Whether the other end learns of it.
        told: bool,
    },
    /// A dead host's process is started again, with the same configuration.
    Restart {
        /// 0 or 1.
        host: usize,
    },
    /// The host stands still (SIGSTOP, a stalled hypervisor).
    Pause {
        /// 0 or 1.
        host: usize,
        /// For how long.
        for_ns: u64,
    },
    /// Nothing passes between the hosts, but nothing is lost.
    Partition {
        /// For how long.
        for_ns: u64,
    },
    /// The connection between the hosts breaks.
    Break,
    /// The connection is this much slower.
    Slow {
        /// Added to every delivery.
        by_ns: u64,
        /// For how long.
        for_ns: u64,
    },
    /// The arbiter is down; what it granted is on its disk.
    ArbiterDown {
        /// For how long.
        for_ns: u64,
    },
    /// This host cannot reach the arbiter.
    ArbiterUnreachable {
        /// 0 or 1.
        host: usize,
        /// For how long.
        for_ns: u64,
    },
    /// An operator has this side hand the guest over to its backup.
    Handover {
        /// 0 or 1.
        host: usize,
    },
    /// An operator stops this side.
    Stop {
        /// 0 or 1.
        host: usize,
    },
    /// Nothing reaches this host from the other, but nothing is lost.
    OneWay {
        /// 0 or 1.
        to: usize,
        /// For how long.
        for_ns: u64,
    },
    /// Every message between the hosts arrives twice.
    Twice {
        /// For how long.
        for_ns: u64,
    },
    /// This host's claims reach the arbiter, its answers are lost.
    ArbiterOneWay {
        /// 0 or 1.
        host: usize,
        /// For how long.
        for_ns: u64,
    },
    /// This host's claims and their answers are this much slower: slower than the host waits.
    ArbiterSlow {
        /// 0 or 1.
        host: usize,
        /// Added to each way.
        by_ns: u64,
        /// For how long.
        for_ns: u64,
    },
    /// Every claim of this host reaches the arbiter twice.
    ArbiterTwice {
        /// 0 or 1.
        host: usize,
        /// For how long.
        for_ns: u64,
    },
    /// This host's clock jumps ahead.
    ClockStep {
        /// 0 or 1.
        host: usize,
        /// By how much.
        by_ns: u64,
    },
}

/// All faults of one run and the settings drawn with them.
#[derive(Debug, Clone)]
pub struct Plan {
    /// When and what, in no order.
    pub faults: Vec<(u64, Fault)>,
    /// Least delay between the hosts.
    pub delay_ns: u64,
    /// Requests or replies of the arbiter lost, in percent; zero once faults have ended.
    pub arbiter_loss_percent: u64,
    /// Answers lost on the way to the client, in percent.
    pub client_loss_percent: u64,
    /// The guest powers itself off at this exit.
    pub power_off_exit: u64,
    /// Stretches ended by a kick, in percent.
    pub kick_percent: u64,
    /// Bytes at which the output gate is full.
    pub gate_bytes_max: usize,
    /// Bytes that may be under way.
    pub window_bytes: u64,
    /// A process that is started again offers itself to whoever runs the guest alone.
    pub standbys: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(random: &mut Random) -> Self {
        let count = [0, 1, 1, 1, 2, 2, 3, 4][(random.draw() % 8) as usize];
        let mut faults = Vec::new();
        for _ in 0..count {
            draw_fault(random, &mut faults);
        }
        let standbys = random.percent(50);
        // Lives after lives: crashes whose hosts come back, early enough for another.
        for _ in 0..if standbys { random.range(0, 3) } else { 0 } {
            let at = random.range(FIRST_NS, FAULTS_END_NS - 500 * MS);
            let (host, told) = ((random.draw() % 2) as usize, random.percent(50));
            faults.push((at, Fault::Crash { host, told }));
            let again = at + random.range(MS, 300 * MS);
            faults.push((again, Fault::Restart { host }));
        }
        let tight = random.percent(20);
        Self {
            delay_ns: if random.percent(10) {
                15 * MS
            } else {
                random.range(50_000, 2 * MS)
            },
            arbiter_loss_percent: if random.percent(30) {
                random.range(0, 60)
            } else {
                0
            },
            client_loss_percent: if random.percent(50) { 2 } else { 0 },
            power_off_exit: if random.percent(10) {
                random.range(20, 900)
            } else {
                u64::MAX
            },
            kick_percent: if random.percent(50) {
                random.range(0, 30)
            } else {
                0
            },
            gate_bytes_max: if tight { 1_000 } else { 1 << 20 },
            window_bytes: if tight { 600 } else { 1 << 20 },
            standbys,
            faults,
        }
    }

    /// Whether nothing at all is wrong with hosts, links and arbiter.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.faults.is_empty() && self.arbiter_loss_percent == 0
    }
}

fn draw_fault(random: &mut Random, faults: &mut Vec<(u64, Fault)>) {
    let at = random.range(FIRST_NS, FAULTS_END_NS - 200 * MS);
    let host = (random.draw() % 2) as usize;
    let longest = FAULTS_END_NS - at;
    // Half of the passing faults are short, around the failure detector's timeout.
    let for_ns = if random.percent(50) {
        random.range(20 * MS, 200 * MS)
    } else {
        longest
    };
    let for_ns = for_ns.min(longest);
    let fault = match random.draw() % 12 {
        0..=2 => Fault::Crash {
            host,
            told: random.percent(50),
        },
        3 | 4 => Fault::Pause { host, for_ns },
        5 | 6 => Fault::Partition { for_ns },
        7 => Fault::Break,
        8 => Fault::Slow {
            by_ns: random.range(5 * MS, 250 * MS),
            for_ns,
        },
        9 => Fault::ArbiterDown { for_ns },
        10 => Fault::ArbiterUnreachable { host, for_ns },
        _ if random.percent(50) => Fault::Handover { host },
        _ => Fault::Stop { host },
    };
    faults.push((at, fault));
    let restart_at = at + random.range(MS, 300 * MS);
    match fault {
        Fault::Crash { host, .. } if random.percent(40) => {
            faults.push((restart_at, Fault::Restart { host }));
        }
        // A fault seldom comes alone: the arbiter is looked at exactly when something breaks.
        Fault::Break | Fault::Partition { .. } if random.percent(30) => {
            let for_ns = random.range(20 * MS, 400 * MS).min(longest);
            faults.push((at, Fault::ArbiterDown { for_ns }));
        }
        _ => {}
    }
}
