//! A performance counter of conditional branches retired in guest mode, over `perf_event_open`.
//!
//! One event, on the thread that opens it (the vCPU thread), pinned, counting only while the
//! processor is in guest mode, at any privilege level: `exclude_kernel` must stay 0 because the guest
//! kernel runs at CPL 0, and `precise_ip` 0 because a host PEBS event is off in the guest. It is a
//! sampling event from the start (a counting event cannot become one), with a period too long to
//! ever elapse; arming shortens the period. The overflow signal is the kick signal, sent to this
//! thread: whoever is woken re-reads the count and believes nothing else.
//!
//! Sources: `perf_event_open(2)`; Linux `kernel/events/core.c` (`_perf_event_period`); event
//! numbers as in rr's `PerfCounters_x86.h` (see [`EVENTS`]).

#![expect(
    unsafe_code,
    reason = "perf_event_open, its ioctls and F_SETOWN_EX have no safe wrapper"
)]

use super::core_pmu::CorePmu;
use super::kick;
use crate::clock::branch_clock::{Counter, CounterError};
use perf_event_open_sys::bindings;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};

/// A period that never elapses, as rr uses: it makes the event a sampling one.
const PERIOD_IDLE: u64 = 1 << 60;

/// `fcntl` commands and owner of `include/uapi/asm-generic/fcntl.h`, which the libc crate leaves out.
const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const F_OWNER_TID: i32 = 0;

/// `struct f_owner_ex`.
#[repr(C)]
struct OwnerEx {
    kind: i32,
    pid: i32,
}

/// One row of the event table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// `vendor_id` of /proc/cpuinfo.
    vendor: &'static str,
    /// First and last `cpu family`.
    families: (u32, u32),
    /// First and last `model`.
    models: (u32, u32),
    /// Raw event: event number, unit mask in bits 8 to 15.
    pub config: u64,
    /// What the maker calls these processors.
    pub name: &'static str,
}

/// Raw events for conditional branches retired. Sources: AMD PPR for family 17h, PMCx0D1
/// "Retired Conditional Branch Instructions"; Intel SDM volume 3, `BR_INST_RETIRED.CONDITIONAL`
/// (0xC4/0x01) up to Comet Lake and `BR_INST_RETIRED.COND` (0xC4/0x11) from Ice Lake on; models as
/// in rr `src/PerfCounters_x86.h`. The first row that fits wins.
pub const EVENTS: &[Event] = &[
    amd(0x17, 0x1a, 0x00d1, "AMD Zen"),
    intel(0x1a, 0x1f, 0x01c4, "Intel Nehalem"),
    intel(0x25, 0x2f, 0x01c4, "Intel Westmere and Sandy Bridge"),
    intel(0x3a, 0x3f, 0x01c4, "Intel Ivy Bridge and Haswell"),
    intel(0x45, 0x47, 0x01c4, "Intel Haswell and Broadwell"),
    intel(0x4e, 0x4f, 0x01c4, "Intel Skylake and Broadwell"),
    intel(0x55, 0x56, 0x01c4, "Intel Skylake-SP and Broadwell"),
    intel(0x5e, 0x5e, 0x01c4, "Intel Skylake"),
    intel(0x6a, 0x6c, 0x11c4, "Intel Ice Lake-SP"),
    intel(0x7d, 0x7e, 0x11c4, "Intel Ice Lake"),
    intel(0x8c, 0x8d, 0x11c4, "Intel Tiger Lake"),
    intel(0x8e, 0x8e, 0x01c4, "Intel Kaby Lake"),
    intel(0x8f, 0x8f, 0x11c4, "Intel Sapphire Rapids"),
    intel(0x97, 0x9a, 0x11c4, "Intel Alder Lake"),
    intel(0x9e, 0xa6, 0x01c4, "Intel Kaby Lake and Comet Lake"),
    intel(0xa7, 0xa7, 0x11c4, "Intel Rocket Lake"),
    intel(0xaa, 0xae, 0x11c4, "Intel Meteor Lake and Granite Rapids"),
    intel(0xb7, 0xb7, 0x11c4, "Intel Raptor Lake"),
    intel(0xba, 0xba, 0x11c4, "Intel Raptor Lake"),
    intel(0xbd, 0xbd, 0x1_0000_11c4, "Intel Lunar Lake"),
    intel(0xbf, 0xbf, 0x11c4, "Intel Raptor Lake"),
    intel(0xc5, 0xc6, 0x1_0000_11c4, "Intel Arrow Lake"),
    intel(0xcf, 0xcf, 0x11c4, "Intel Emerald Rapids"),
];

const fn amd(first: u32, last: u32, config: u64, name: &'static str) -> Event {
    let vendor = "AuthenticAMD";
    Event {
        vendor,
        families: (first, last),
        models: (0, 0xff),
        config,
        name,
    }
}

const fn intel(first: u32, last: u32, config: u64, name: &'static str) -> Event {
    Event {
        vendor: "GenuineIntel",
        families: (6, 6),
        models: (first, last),
        config,
        name,
    }
}

/// The row for the processor that `/proc/cpuinfo` text describes.
#[must_use]
pub fn event_for(cpuinfo: &str) -> Option<&'static Event> {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    let vendor = field("vendor_id")?;
    let family: u32 = field("cpu family")?.parse().ok()?;
    let model: u32 = field("model")?.parse().ok()?;
    EVENTS.iter().find(|e| {
        e.vendor == vendor
            && (e.families.0..=e.families.1).contains(&family)
            && (e.models.0..=e.models.1).contains(&model)
    })
}

/// The open event.
#[derive(Debug)]
pub struct PerfCounter {
    file: File,
}

impl PerfCounter {
    /// Opens the raw event `config` for the calling thread, which must be the vCPU thread.
    ///
    /// # Errors
    /// When the kernel has no such counter to give: none exist, none is free, or
    /// `perf_event_paranoid` forbids it; or when a hybrid's thread cannot stay where it counts.
    pub fn open(config: u64) -> Result<Self, CounterError> {
        let operation = |operation| move |source| CounterError::Io { operation, source };
        let pmu = CorePmu::here().map_err(operation("find its unit"))?;
        pmu.keep_thread().map_err(operation("sched_setaffinity"))?;
        let mut attr = bindings::perf_event_attr {
            size: u32::try_from(size_of::<bindings::perf_event_attr>()).unwrap_or(0),
            type_: pmu.perf_type,
            config,
            read_format: u64::from(
                bindings::PERF_FORMAT_TOTAL_TIME_ENABLED | bindings::PERF_FORMAT_TOTAL_TIME_RUNNING,
            ),
            ..Default::default()
        };
        attr.__bindgen_anon_1.sample_period = PERIOD_IDLE;
        attr.__bindgen_anon_2.wakeup_events = 1;
        attr.set_pinned(1);
        attr.set_exclude_host(1);
        let flags = u64::from(bindings::PERF_FLAG_FD_CLOEXEC);
        // SAFETY: `attr` is a valid, sized attribute block; pid 0 is this thread, cpu -1 any.
        let fd = unsafe { perf_event_open_sys::perf_event_open(&raw mut attr, 0, -1, -1, flags) };
        if fd < 0 {
            return Err(io_error("perf_event_open"));
        }
        // SAFETY: the kernel just gave us this descriptor and nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        let counter = Self { file };
        counter.route_signal()?;
        Ok(counter)
    }

    /// Has overflows send the kick signal to this thread.
    fn route_signal(&self) -> Result<(), CounterError> {
        let fd = self.file.as_raw_fd();
        let owner = OwnerEx {
            kind: F_OWNER_TID,
            pid: rustix::thread::gettid().as_raw_nonzero().get(),
        };
        // SAFETY: `owner` is a valid f_owner_ex that outlives the call.
        check("F_SETOWN_EX", unsafe {
            libc::fcntl(fd, F_SETOWN_EX, &raw const owner)
        })?;
        // SAFETY: plain integer argument.
        check("F_SETSIG", unsafe {
            libc::fcntl(fd, F_SETSIG, kick::signal())
        })?;
        let flags = libc::O_ASYNC | libc::O_NONBLOCK;
        // SAFETY: plain integer argument.
        check("F_SETFL", unsafe { libc::fcntl(fd, libc::F_SETFL, flags) })
    }

    fn set_period(&mut self, period: u64) -> Result<(), CounterError> {
        let fd = self.file.as_raw_fd();
        // SAFETY: the kernel reads one u64 from a valid place.
        check("PERF_EVENT_IOC_PERIOD", unsafe {
            libc::ioctl(fd, u64::from(bindings::PERIOD), &raw const period)
        })
    }
}

impl Counter for PerfCounter {
    fn read(&mut self) -> Result<u64, CounterError> {
        let mut bytes = [0; 24];
        let read = self
            .file
            .read(&mut bytes)
            .map_err(|source| CounterError::Io {
                operation: "read",
                source,
            })?;
        if read != bytes.len() {
            // End of file: a pinned event that lost its counter is in error state for good.
            return Err(CounterError::Multiplexed {
                enabled_ns: 0,
                running_ns: 0,
            });
        }
        let word = |i: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
            u64::from_ne_bytes(word)
        };
        let (count, enabled_ns, running_ns) = (word(0), word(1), word(2));
        if enabled_ns != running_ns {
            return Err(CounterError::Multiplexed {
                enabled_ns,
                running_ns,
            });
        }
        Ok(count)
    }

    fn arm(&mut self, branches: u64) -> Result<(), CounterError> {
        self.set_period(branches)
    }

    fn disarm(&mut self) -> Result<(), CounterError> {
        self.set_period(PERIOD_IDLE)
    }
}

fn check(operation: &'static str, result: i32) -> Result<(), CounterError> {
    if result < 0 {
        Err(io_error(operation))
    } else {
        Ok(())
    }
}

fn io_error(operation: &'static str) -> CounterError {
    CounterError::Io {
        operation,
        source: io::Error::last_os_error(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpuinfo(vendor: &str, family: u32, model: u32) -> String {
        format!(
            "processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        )
    }

    #[test]
    fn events_by_processor() {
        let config = |v, f, m| event_for(&cpuinfo(v, f, m)).map(|e| e.config);
        assert_eq!(config("AuthenticAMD", 0x17, 1), Some(0xd1));
        assert_eq!(config("GenuineIntel", 6, 0x5e), Some(0x01c4));
        assert_eq!(config("GenuineIntel", 6, 0x8f), Some(0x11c4));
        assert_eq!(config("GenuineIntel", 6, 0x9e), Some(0x01c4));
        assert_eq!(config("GenuineIntel", 6, 0xbd), Some(0x1_0000_11c4));
        assert_eq!(
            config("GenuineIntel", 6, 0xbe),
            None,
            "an Atom core: its event is another"
        );
        assert_eq!(config("GenuineIntel", 15, 2), None);
        assert_eq!(event_for(""), None);
    }
}
