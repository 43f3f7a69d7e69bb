//! Which performance monitoring unit counts, and on which processors.
//!
//! Most machines have one kind of core and one unit, which `PERF_TYPE_RAW` means. Hybrid ones have a unit for
//! each kind; the exact event is that of the performance cores, under the type that the kernel gave their
//! unit, and a thread that wanders off to another kind is not counted there: it has to stay. Source:
//! `perf_event_open(2)`, Linux `arch/x86/events/intel/core.c` (`intel_pmu_init`, `hybrid_pmu`),
//! `Documentation/ABI/testing/sysfs-bus-event_source-devices`.

#![forbid(unsafe_code)]

use rustix::thread::{CpuSet, sched_setaffinity};
use std::io;
use std::path::Path;

/// `PERF_TYPE_RAW` of `include/uapi/linux/perf_event.h`.
const RAW: u32 = 4;
const SYSFS: &str = "/sys/bus/event_source/devices";
/// The unit of the performance cores; there on hybrids only.
const HYBRID: &str = "cpu_core";

/// The unit that the exact event belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorePmu {
    /// The type for `perf_event_attr`.
    pub(super) perf_type: u32,
    /// Numbers of its processors, ascending; `None`: all.
    processors: Option<Vec<usize>>,
}

impl CorePmu {
    /// This machine's.
    ///
    /// # Errors
    /// When the kernel describes a hybrid's unit in a way that is not understood.
    pub fn here() -> io::Result<Self> {
        Self::below(Path::new(SYSFS))
    }

    fn below(devices: &Path) -> io::Result<Self> {
        let unit = devices.join(HYBRID);
        if !unit.exists() {
            return Ok(Self {
                perf_type: RAW,
                processors: None,
            });
        }
        let read = |name| std::fs::read_to_string(unit.join(name));
        let odd = |what: &str| io::Error::other(format!("{}: {what}", unit.display()));
        let perf_type = read("type")?.trim().parse();
        let processors = processors(read("cpus")?.trim());
        Ok(Self {
            perf_type: perf_type.map_err(|_| odd("its type is no number"))?,
            processors: Some(processors.ok_or_else(|| odd("its cpus are no list"))?),
        })
    }

    /// Keeps this thread on the unit's processors.
    ///
    /// # Errors
    /// When the kernel does not allow it: none of them may be used by this process.
    pub(super) fn keep_thread(&self) -> io::Result<()> {
        let Some(processors) = &self.processors else {
            return Ok(());
        };
        let mut set = CpuSet::new();
        for processor in processors {
            set.set(*processor);
        }
        Ok(sched_setaffinity(None, &set)?)
    }
}

/// A list as in sysfs: `0-3,8`.
fn processors(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CpuSet::MAX_CPU {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_hybrids_unit_the_event_is_raw_and_every_processor_will_do() {
        let devices = tempfile::tempdir().expect("a directory");
        let pmu = CorePmu::below(devices.path()).expect("nothing to misread");
        assert_eq!((pmu.perf_type, &pmu.processors), (RAW, &None));
        pmu.keep_thread().expect("nothing to do");
    }

    #[test]
    fn a_hybrids_unit_has_a_type_and_processors() {
        let devices = tempfile::tempdir().expect("a directory");
        let unit = devices.path().join(HYBRID);
        std::fs::create_dir(&unit).expect("room");
        let describe = |kind: &str, cpus: &str| {
            std::fs::write(unit.join("type"), kind).expect("room");
            std::fs::write(unit.join("cpus"), cpus).expect("room");
            CorePmu::below(devices.path())
        };
        let pmu = describe("10\n", "0-3,8\n").expect("a hybrid");
        assert_eq!(pmu.perf_type, 10);
        assert_eq!(pmu.processors.as_deref(), Some(&[0, 1, 2, 3, 8][..]));
        for (kind, cpus) in [("x", "0"), ("10", ""), ("10", "3-1"), ("10", "0-99999999")] {
            describe(kind, cpus).expect_err("taken");
        }
    }
}
