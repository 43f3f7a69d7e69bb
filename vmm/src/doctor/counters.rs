//! Can the branch clock be believed on this host? Found out by making it do its work on small guests.
//!
//! Counting: a program whose conditional branches are known is thrown out of the guest at random and
//! must still count exactly. Stopping: the counter is armed again and again, and how far the guest
//! overran (the skid) makes a histogram, from which the margin follows. Landing: places of a loop are
//! gone to, by breakpoint or, where those do not work, by single step, and must be reached with the right
//! count and registers. The rest is what is
//! known to spoil counts on real processors (`kvm::perf_counter` has the sources).
//!
//! The margin is four times the largest skid seen and at least [`MARGIN_BRANCHES_MIN`]: too small shows
//! as a backup that diverges by overshooting, too large costs a breakpoint hit or two per landing.

use super::exit_probes::monotonic_ns;
use super::report::{LandingCosts, ProbeResult, SkidBin};
use super::tiny_guest::{CODE, Ring, TinyGuest};
use super::{Finding, Probe};
use crate::clock::branch_clock::BranchClock;
use crate::clock::landing::{Crossing, Here, LandingMethod, Plan, plan};
use crate::kvm::KvmError;
use crate::kvm::exit::BadExit;
use crate::kvm::perf_counter::{self, PerfCounter};
use crate::kvm::vcpu::{Debugging, RunOutcome};
use crate::machine::exit::VmExit;
use logging_channel::execution_point::{ExecutionPoint, PointKind};
use std::path::Path;
use std::sync::mpsc::TryRecvError;

/// Smallest margin, in branches.
const MARGIN_BRANCHES_MIN: u64 = 64;
/// A margin beyond this makes landings so slow that the exit clock serves better.
const MARGIN_BRANCHES_MAX: u64 = 16_384;
/// Rounds of the probe guest's loop between two port writes.
const ROUNDS: u64 = 100_000;
/// Conditional branches per round: one taken, one that depends on the round.
const BRANCHES_PER_ROUND: u64 = 2;
/// Loops counted under kicks.
const COUNTED: u32 = 20;
/// Overflows asked for.
const OVERFLOWS: u32 = 400;
/// Places landed on; fewer where only the cost is wanted.
const LANDINGS: u32 = 100;
const LANDINGS_TIMED: u32 = 5;
/// Stops allowed for one landing before it counts as lost.
const STOPS_MAX: u32 = 100_000;
/// RFLAGS.RF.
const RFLAGS_RF: u64 = 1 << 16;
/// Upper bounds of the histogram's bins, in branches.
const BINS: [u64; 8] = [0, 1, 3, 10, 30, 100, 1_000, u64::MAX];

/// What the counters section found.
pub(super) struct Counters {
    pub(super) probes: Vec<ProbeResult>,
    /// The margin for this host, when it can be trusted.
    pub(super) margin_branches: Option<u64>,
    /// How the margin is crossed here.
    pub(super) crossing: Crossing,
    /// How far overflows overran.
    pub(super) skid: Vec<SkidBin>,
    /// What crossing the margin takes.
    pub(super) costs: LandingCosts,
}

const PROBES: [Probe; 2] = [
    ("guest-branches", exact_under_kicks),
    ("host-settings", host_settings),
];

/// Runs every probe.
pub(super) fn examine() -> Counters {
    let (skid, margin, bins) = match skid() {
        Ok(Ok(skid)) => (Ok(Finding::Good(skid.text)), Some(skid.margin), skid.bins),
        Ok(Err(bad)) => (Ok(bad), None, Vec::new()),
        Err(error) => (Err(error), None, Vec::new()),
    };
    let mut probes = vec![ProbeResult::of("skid", skid)];
    probes.extend(
        PROBES
            .iter()
            .map(|(name, probe)| ProbeResult::of(name, probe())),
    );
    let mut crossing = Crossing::Breakpoint;
    let by = |crossing| LandingMethod {
        margin: margin.unwrap_or(MARGIN_BRANCHES_MIN),
        crossing,
    };
    let mut landing = landings(by(crossing), LANDINGS);
    let mut costs = LandingCosts::default();
    if !landing.as_ref().is_ok_and(Landed::is_good) && open().is_ok() {
        let without = landing;
        crossing = Crossing::SingleStep;
        landing = landings(by(crossing), LANDINGS);
        costs.single_step_us = landing.as_ref().ok().and_then(|landed| landed.cost_us);
        landing = landing.map(|landed| landed.in_place_of_breakpoints(&without));
    } else if let Ok(landed) = &landing {
        costs.breakpoint_us = landed.cost_us;
        let stepped = landings(by(Crossing::SingleStep), LANDINGS_TIMED);
        costs.single_step_us = stepped.ok().and_then(|landed| landed.cost_us);
    }
    probes.push(ProbeResult::of(
        "landing",
        landing.map(|landed| landed.finding),
    ));
    if costs.breakpoint_us.is_some() {
        // Landings by single step refuse such guests.
        let undisturbed = super::debug_probe::undisturbed();
        probes.push(ProbeResult::of("own-debugging", undisturbed));
    }
    Counters {
        probes,
        margin_branches: margin,
        crossing,
        skid: bins,
        costs,
    }
}

/// What a series of landings came to.
struct Landed {
    finding: Finding,
    /// Microseconds to cross the margin once.
    cost_us: Option<f64>,
}

impl Landed {
    const fn is_good(&self) -> bool {
        matches!(self.finding, Finding::Good(_))
    }

    fn bad(why: String) -> Self {
        Self {
            finding: Finding::Bad(why),
            cost_us: None,
        }
    }

    /// Single step is a way to land where breakpoints are not; why they are not belongs to the evidence.
    fn in_place_of_breakpoints(self, breakpoints: &Result<Self, KvmError>) -> Self {
        let why = match breakpoints {
            Ok(landed) => landed.finding.text().to_owned(),
            Err(error) => error.to_string(),
        };
        let finding = match self.finding {
            Finding::Good(text) => Finding::Good(format!("{text}; by breakpoint not: {why}")),
            Finding::Note(text) | Finding::Bad(text) => {
                Finding::Bad(format!("{why}; by single step neither: {text}"))
            }
        };
        Self { finding, ..self }
    }
}

/// What stands in the report of a host that is not fit anyway.
pub(super) fn not_examined() -> Counters {
    let evidence = "not examined: the host is unfit".to_owned();
    Counters {
        probes: vec![ProbeResult::of("counters", Ok(Finding::Bad(evidence)))],
        margin_branches: None,
        crossing: Crossing::Breakpoint,
        skid: Vec::new(),
        costs: LandingCosts::default(),
    }
}

/// This processor's event, open on this thread; or why not.
fn open() -> Result<(BranchClock<PerfCounter>, &'static str), Finding> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let Some(event) = perf_counter::event_for(&cpuinfo) else {
        return Err(Finding::Bad("no event is known for this processor".into()));
    };
    match PerfCounter::open(event.config) {
        Ok(counter) => Ok((
            BranchClock::new(counter, LandingMethod::default()),
            event.name,
        )),
        Err(error) => Err(Finding::Bad(format!(
            "perf_event_open({}, {:#x}): {error}",
            event.name, event.config
        ))),
    }
}

/// Loops ROUNDS times, then writes to port 0x10, forever.
fn looping_guest() -> Result<TinyGuest, KvmError> {
    let rounds = ROUNDS.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xb9, rounds[0], rounds[1], rounds[2], rounds[3], // mov ecx, ROUNDS
        0xf6, 0xc1, 0x07,                                 // again: test cl, 7
        0x75, 0x03,                                       // jnz over
        0x48, 0xff, 0xc3,                                 // inc rbx
        0x48, 0x01, 0xc8,                                 // over: add rax, rcx
        0xff, 0xc9,                                       // dec ecx
        0x75, 0xf1,                                       // jnz again
        0xe6, 0x10,                                       // out 0x10, al
        0xeb, 0xe8,                                       // jmp start
    ];
    TinyGuest::new(&code, Ring::Kernel)
}

/// The exact number of branches of a known loop, while kicks throw the guest out at random.
fn exact_under_kicks() -> Result<Finding, KvmError> {
    let (mut clock, processor) = match open() {
        Ok(opened) => opened,
        Err(bad) => return Ok(bad),
    };
    let mut guest = looping_guest()?;
    let kicker = guest.cpu.kicker();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        while is_done.try_recv() == Err(TryRecvError::Empty) {
            kicker.kick();
            std::thread::park_timeout(std::time::Duration::from_micros(50));
        }
    });
    let outcome = count_loops(&mut guest, &mut clock);
    drop(done);
    // The thread only kicks; it cannot panic.
    let _ = thread.join();
    let (wrong, kicks) = outcome?;
    let expected = ROUNDS * BRANCHES_PER_ROUND;
    Ok(match wrong {
        None => Finding::Good(format!(
            "{processor}: {COUNTED} times {expected} branches, exact among {kicks} kicks"
        )),
        Some(found) => Finding::Bad(format!(
            "{processor}: {expected} branches were counted as {found} among {kicks} kicks"
        )),
    })
}

fn count_loops(
    guest: &mut TinyGuest,
    clock: &mut BranchClock<PerfCounter>,
) -> Result<(Option<u64>, u64), KvmError> {
    let mut kicks = 0;
    let mut before = clock.branches()?;
    for _ in 0..COUNTED {
        loop {
            match guest.cpu.run()? {
                RunOutcome::Exit(_) => break,
                RunOutcome::Kicked | RunOutcome::Debug { .. } => kicks += 1,
            }
        }
        let now = clock.branches()?;
        if now - before != ROUNDS * BRANCHES_PER_ROUND {
            return Ok((Some(now - before), kicks));
        }
        before = now;
    }
    Ok((None, kicks))
}

/// What the skid probe found.
struct Skid {
    text: String,
    margin: u64,
    bins: Vec<SkidBin>,
}

/// How far the guest overruns an overflow, and whether the signal comes at all.
fn skid() -> Result<Result<Skid, Finding>, KvmError> {
    let (mut clock, _) = match open() {
        Ok(opened) => opened,
        Err(bad) => return Ok(Err(bad)),
    };
    let mut guest = looping_guest()?;
    let mut seen = Vec::new();
    let mut lost = 0;
    for number in 0..OVERFLOWS {
        let ahead = 1 + u64::from(number) * 37 % 5_000;
        let target = clock.branches()? + ahead;
        clock.arm(ahead)?;
        let mut signalled = false;
        // A port write in between is not the overflow; the loop is longer than any distance asked for.
        for _ in 0..3 {
            match guest.cpu.run()? {
                RunOutcome::Kicked if clock.branches()? >= target => {
                    signalled = true;
                    break;
                }
                RunOutcome::Kicked | RunOutcome::Exit(_) | RunOutcome::Debug { .. } => {}
            }
        }
        clock.disarm()?;
        if signalled {
            seen.push(clock.branches()? - target);
        } else {
            lost += 1;
        }
    }
    let most = seen.iter().copied().max().unwrap_or(u64::MAX);
    let margin = most.saturating_mul(4).max(MARGIN_BRANCHES_MIN);
    let bins = bins(&seen);
    let histogram = in_words(&bins);
    if lost > 0 {
        return Ok(Err(Finding::Bad(format!(
            "{lost} of {OVERFLOWS} overflows brought no signal; skid {histogram}"
        ))));
    }
    if margin > MARGIN_BRANCHES_MAX {
        return Ok(Err(Finding::Bad(format!(
            "skid up to {most} branches ({histogram}): landing would cost too much"
        ))));
    }
    let text = format!("at most {most} branches ({histogram}): margin {margin}");
    Ok(Ok(Skid { text, margin, bins }))
}

/// How many lie in each bin that has any.
fn bins(seen: &[u64]) -> Vec<SkidBin> {
    let mut from = 0;
    let mut bins = Vec::new();
    for to in BINS {
        let within = |skid: &&u64| (from..=to).contains(*skid);
        let count = seen.iter().filter(within).count() as u64;
        if count > 0 {
            bins.push(SkidBin { from, to, count });
        }
        from = to.saturating_add(1);
    }
    bins
}

fn in_words(bins: &[SkidBin]) -> String {
    let one = |SkidBin { from, to, count }: &SkidBin| match *to {
        u64::MAX => format!("{from}-more: {count}"),
        to if to == *from => format!("{to}: {count}"),
        to => format!("{from}-{to}: {count}"),
    };
    bins.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Goes to exact places of the loop as guests will be landed here: with the margin that the skid asks for.
fn landings(method: LandingMethod, count: u32) -> Result<Landed, KvmError> {
    let mut clock = match open() {
        Ok((clock, _)) => clock,
        Err(finding) => {
            let cost_us = None;
            return Ok(Landed { finding, cost_us });
        }
    };
    let mut guest = looping_guest()?;
    let mut total = Crossed::default();
    for number in 0..count {
        let port = guest.exit()?;
        if !matches!(port, VmExit::PortWrite { port: 0x10, .. }) {
            return Err(BadExit::Unexpected(format!("{port:x?} instead of a port write")).into());
        }
        guest.cpu.complete_io()?;
        // Some round of the loop, always at its first instruction.
        let round = u64::from(number) * 997 % (ROUNDS - 1);
        let branches = clock.branches()? + round * BRANCHES_PER_ROUND;
        match land(&mut guest, &mut clock, branches, method)? {
            Ok(crossed) => {
                total.stops += crossed.stops;
                total.ns += crossed.ns;
            }
            Err(why) => return Ok(Landed::bad(format!("landing {number} of {count}: {why}"))),
        }
        let rcx = guest.cpu.general_registers()?.rcx;
        if rcx != ROUNDS - round {
            let expected = ROUNDS - round;
            return Ok(Landed::bad(format!(
                "landing {number}: RCX is {rcx}, not {expected}"
            )));
        }
        guest.cpu.debug(Debugging::Off)?;
        clock.disarm()?;
    }
    let how = match method.crossing {
        Crossing::Breakpoint => "by breakpoint",
        Crossing::SingleStep => "by single step",
    };
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let cost_us = total.ns as f64 / 1e3 / f64::from(count);
    let stops = f64::from(total.stops) / f64::from(count);
    Ok(Landed {
        finding: Finding::Good(format!(
            "{count} of {count} exact {how}, {stops:.1} stops and {cost_us:.0} us each"
        )),
        cost_us: Some(cost_us),
    })
}

/// What it took to cross the margin.
#[derive(Default)]
struct Crossed {
    stops: u32,
    ns: u64,
}

/// Lands at the loop's first instruction when `branches` have retired.
fn land(
    guest: &mut TinyGuest,
    clock: &mut BranchClock<PerfCounter>,
    branches: u64,
    method: LandingMethod,
) -> Result<Result<Crossed, String>, KvmError> {
    let mut stops = 0;
    let mut began_ns = None;
    while stops < STOPS_MAX {
        let general = guest.cpu.general_registers()?;
        let here = Here {
            branches: clock.branches()?,
            rip: general.rip,
            check: 0,
        };
        let target = ExecutionPoint {
            exits: 0,
            kind: PointKind::Between,
            branches,
            rip: CODE + 5,
            check: 0,
        };
        let next = plan(here, &target, method);
        if !matches!(next, Plan::Run { .. }) {
            began_ns.get_or_insert_with(monotonic_ns);
        }
        let arm_after = match next {
            Plan::Arrived => {
                let ns = began_ns.map_or(0, |began| monotonic_ns().saturating_sub(began));
                return Ok(Ok(Crossed { stops, ns }));
            }
            Plan::Overshot => {
                return Ok(Err(format!("at {here:?}, beyond {branches} branches")));
            }
            Plan::Run { arm_after } => arm_after,
            Plan::Step { arm_after } => {
                guest.cpu.debug(Debugging::SingleStep)?;
                arm_after
            }
            Plan::Approach { arm_after } => {
                guest.cpu.debug(Debugging::Breakpoint(target.rip))?;
                arm_after
            }
            Plan::LeaveHit { arm_after } => {
                guest.cpu.debug(Debugging::Breakpoint(target.rip))?;
                let mut general = general;
                general.rflags |= RFLAGS_RF;
                guest.cpu.set_general_registers(&general)?;
                arm_after
            }
        };
        clock.arm(arm_after)?;
        if let RunOutcome::Exit(exit) = guest.cpu.run()? {
            return Ok(Err(format!("{exit:x?} on the way")));
        }
        stops += 1;
    }
    Ok(Err(format!("not there after {STOPS_MAX} stops")))
}

/// What the host could set to spoil counts, as far as it can be read.
fn host_settings() -> Result<Finding, KvmError> {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let mut notes = Vec::new();
    if cpuinfo.contains("GenuineIntel") {
        // The second is a hybrid's.
        let files = ["cpu", "cpu_core"].map(|unit| format!("/sys/devices/{unit}/freeze_on_smi"));
        let offered = files.iter().find(|file| Path::new(file).exists());
        let file = offered.unwrap_or(&files[0]);
        match read(file).as_deref() {
            Ok("1") => notes.push("freeze_on_smi is set".to_owned()),
            Ok(_) => {
                let remedy = format!("SMIs are counted: echo 1 > {file}");
                return Ok(Finding::Bad(remedy));
            }
            Err(_) => notes.push("freeze_on_smi is not offered".to_owned()),
        }
    }
    if cpuinfo.contains("AuthenticAMD") && !cpuinfo.contains(" hypervisor") {
        match speculative_lock_map() {
            Some(true) => {}
            Some(false) => {
                return Ok(Finding::Bad(
                    "SpecLockMap rolls locks back without the counter: set bit 54 of MSR 0xc0011020 on \
                     every processor (modprobe msr; wrmsr)"
                        .into(),
                ));
            }
            None => notes.push(
                "MSR 0xc0011020 cannot be read (modprobe msr, as root): SpecLockMap is unknown"
                    .into(),
            ),
        }
    }
    if read("/proc/sys/kernel/nmi_watchdog").is_ok_and(|on| on == "1") {
        notes.push("the NMI watchdog takes a counter".to_owned());
    }
    notes.push("the guest has neither PMU nor TSX (CPU model)".to_owned());
    Ok(Finding::Good(notes.join("; ")))
}

/// Whether speculation of LOCK is off on processor 0 (bit 54 of LS_CFG; rr's `zen_workaround.py`).
fn speculative_lock_map() -> Option<bool> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open("/dev/cpu/0/msr").ok()?;
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0xc001_1020).ok()?;
    Some(u64::from_le_bytes(bytes) >> 54 & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_leaves_nothing_out() {
        assert_eq!(
            in_words(&bins(&[0, 0, 1, 2, 3, 11, 5_000])),
            "0: 2, 1: 1, 2-3: 2, 11-30: 1, 1001-more: 1"
        );
        assert_eq!(in_words(&bins(&[])), "");
    }
}
