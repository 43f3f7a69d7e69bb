//! Are there performance counters that count a guest exactly? Information for the branch clock.

use super::report::ProbeResult;
use super::tiny_guest::{Ring, TinyGuest};
use super::{Finding, Probe};
use crate::clock::branch_clock::Counter;
use crate::kvm::KvmError;
use crate::kvm::perf_counter::{self, PerfCounter};

/// Conditional branches in the probe guest's loop.
const BRANCHES: u64 = 1_000_000;
/// Times the guest runs the loop.
const ROUNDS: usize = 5;

const PROBES: [Probe; 1] = [("guest-branches", guest_branches)];

pub(super) fn examine() -> Vec<ProbeResult> {
    PROBES
        .iter()
        .map(|(name, probe)| ProbeResult::of(name, probe()))
        .collect()
}

/// What stands in the report of a host that is not fit anyway.
pub(super) fn not_examined() -> ProbeResult {
    let evidence = "not examined: the host is unfit".to_owned();
    ProbeResult::of("counters", Ok(Finding::Bad(evidence)))
}

/// The conditional branches of a loop, counted in guest mode only, several times.
fn guest_branches() -> Result<Finding, KvmError> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let Some(event) = perf_counter::event_for(&cpuinfo) else {
        return Ok(Finding::Bad("no event is known for this processor".into()));
    };
    let (processor, config) = (event.name, event.config);
    let mut counter = match PerfCounter::open(config) {
        Ok(counter) => counter,
        Err(error) => {
            return Ok(Finding::Bad(format!(
                "perf_event_open({processor}, {config:#x}): {error}"
            )));
        }
    };
    let count = BRANCHES.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xb9, count[0], count[1], count[2], count[3], // mov ecx, BRANCHES
        0xff, 0xc9,                                   // dec ecx
        0x75, 0xfc,                                   // jnz back
        0xe6, 0x10,                                   // out 0x10, al
        0xeb, 0xf3,                                   // jmp start
    ];
    let mut guest = TinyGuest::new(&code, Ring::Kernel)?;
    let mut counts = Vec::new();
    let mut last = read(&mut counter);
    for _ in 0..ROUNDS {
        guest.port()?;
        let now = read(&mut counter);
        counts.push(match (&last, &now) {
            (Ok(last), Ok(now)) => now - last,
            (Err(error), _) | (_, Err(error)) => return Ok(Finding::Bad(error.clone())),
        });
        last = now;
    }
    Ok(if counts.iter().all(|&count| count == BRANCHES) {
        Finding::Good(format!(
            "{processor}: {ROUNDS} times {BRANCHES} branches, exact"
        ))
    } else {
        Finding::Bad(format!(
            "{processor}: {BRANCHES} branches were counted as {counts:?}"
        ))
    })
}

fn read(counter: &mut PerfCounter) -> Result<u64, String> {
    counter.read().map_err(|error| error.to_string())
}
