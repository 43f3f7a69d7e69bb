//! Builds a guest: images from disk, identity for the handshake, and the executor of a log's Start.
//!
//! Both sides build from their own copies of the images; the handshake compared the digests. What
//! differs from run to run (seed, wall clock, generation) comes from the Start record alone.

use super::kvm_executor::KvmExecutor;
use crate::boot::{self, BootError, BootSource, cmdline};
use crate::clock::branch_clock::{BranchClock, Counter, LyingCounter};
use crate::clock::landing::LandingMethod;
use crate::config::Config;
use crate::kvm::dirty::DirtyLog;
use crate::kvm::guest_memory::{self, Backing};
use crate::kvm::kick::Kicker;
use crate::kvm::perf_counter::{self, PerfCounter};
use crate::kvm::vm::Vm;
use crate::kvm::{KvmError, cpuid};
use crate::machine::ram::GuestRam;
use crate::machine::{Machine, MachineConfig};
use crate::snapshot::file::About;
use crate::snapshot::state::GuestState;
use logging_channel::message::{Identity, Refused};
use logging_channel::record::{ClockKind, LogIndex, Start};
use logging_channel::session::compare_identities;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// Why a guest cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// An image cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// An image, or the command line, cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The log is of another guest.
    #[error("it was made with another {item}: {theirs} there, {ours} here")]
    OtherGuest {
        /// What differs.
        item: String,
        /// In the log.
        theirs: String,
        /// Here.
        ours: String,
    },
    /// The branch clock was asked for.
    #[error("the branch clock needs a performance counter, and this processor's is not known")]
    NoCounter,
    /// No random bytes.
    #[error("cannot read random bytes: {0}")]
    Random(std::io::Error),
}

/// The images and settings of one guest.
#[derive(Debug, Clone)]
pub(super) struct Blueprint {
    kernel: Vec<u8>,
    initramfs: Vec<u8>,
    identity: Identity,
    landing: LandingMethod,
    counter_lies_after: Option<u64>,
}

/// A guest that is ready to run; belongs to the thread that made it.
pub(super) struct Guest {
    /// Its executor.
    pub(super) executor: KvmExecutor,
    /// Gets it out of KVM_RUN.
    pub(super) kicker: Kicker,
    /// Which of its pages are written.
    pub(super) dirty: Arc<DirtyLog>,
    /// Keeps the virtual machine's file and memory slots.
    pub(super) vm: Vm,
}

impl Guest {
    fn new(executor: KvmExecutor, kicker: Kicker, vm: Vm) -> Self {
        let dirty = Arc::new(vm.dirty_log());
        let executor = executor.watched(Arc::clone(&dirty));
        Self {
            executor,
            kicker,
            dirty,
            vm,
        }
    }
}

impl Blueprint {
    /// Reads the images that `config` names. `landing` is how this host lands.
    ///
    /// # Errors
    /// When an image cannot be read or the command line is not allowed.
    pub(super) fn read(config: &Config, landing: LandingMethod) -> Result<Self, GuestError> {
        let kernel = read(&config.vm.kernel)?;
        let initramfs = config
            .vm
            .initramfs
            .as_deref()
            .map_or(Ok(Vec::new()), read)?;
        let cmdline = cmdline::compose(&cmdline::STANDARD_DEVICES, &config.vm.cmdline)
            .map_err(BootError::from)?;
        let identity = Identity {
            vm: config.vm.name.as_str().to_owned(),
            cpu_model: cpuid::CPU_MODEL.to_owned(),
            memory_bytes: config.vm.memory_mib << 20,
            kernel_sha256: Sha256::digest(&kernel).into(),
            initramfs_sha256: Sha256::digest(&initramfs).into(),
            cmdline,
            mac: config.vm.mac,
        };
        Ok(Self {
            kernel,
            initramfs,
            identity,
            landing,
            counter_lies_after: None,
        })
    }

    /// The same with a counter that lies: see [`LyingCounter`].
    #[must_use]
    pub(super) fn sabotaged(mut self, counter_lies_after: Option<u64>) -> Self {
        self.counter_lies_after = counter_lies_after;
        self
    }

    /// What the handshake compares.
    #[must_use]
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The Start record of a new run on `clock`.
    ///
    /// # Errors
    /// When the host has no random bytes.
    pub(super) fn start(&self, generation: u64, clock: ClockKind) -> Result<Start, GuestError> {
        let i = &self.identity;
        let mut rng_seed = [0; 32];
        fill_random(&mut rng_seed).map_err(GuestError::Random)?;
        Ok(Start {
            vm: i.vm.clone(),
            generation,
            clock,
            cpu_model: i.cpu_model.clone(),
            memory_bytes: i.memory_bytes,
            kernel_sha256: i.kernel_sha256,
            initramfs_sha256: i.initramfs_sha256,
            cmdline: i.cmdline.clone(),
            mac: i.mac,
            wall_clock_s: wall_clock_s(),
            rng_seed,
        })
    }

    /// Builds the guest of `start` on the calling thread.
    ///
    /// # Errors
    /// When the log is of another guest, or the host cannot build it.
    pub(super) fn build(&self, start: &Start) -> Result<Guest, GuestError> {
        self.check(start)?;
        let memory = self.empty_memory()?;
        let source = BootSource {
            kernel: &self.kernel,
            initramfs: &self.initramfs,
            cmdline: &start.cmdline,
            rng_seed: &start.rng_seed,
        };
        let cpu = boot::prepare(&memory, &source)?;
        let vm = Vm::new(memory.clone())?;
        let mut vcpu = vm.create_vcpu()?;
        vcpu.restore(&cpu)?;
        let config = MachineConfig {
            mac: start.mac,
            wall_clock_s: start.wall_clock_s,
        };
        let machine = Machine::new(&config, memory);
        let (kicker, clock) = (vcpu.kicker(), self.clock(start.clock)?);
        let executor = KvmExecutor::new(vcpu, machine, clock);
        Ok(Guest::new(executor, kicker, vm))
    }

    /// Guest memory of this guest's size, all zero.
    ///
    /// # Errors
    /// When the host has not enough.
    pub(super) fn empty_memory(&self) -> Result<GuestRam, GuestError> {
        let backing = Backing {
            populate: false,
            lock: false,
        };
        let mib = self.identity.memory_bytes >> 20;
        Ok(guest_memory::allocate(mib, backing).map_err(KvmError::from)?)
    }

    /// Builds the guest of a state on the calling thread. `memory` holds what it held when the state
    /// was saved; the images were compared in the handshake, or by whoever read the state from a file.
    ///
    /// # Errors
    /// When the state is of another machine, or the host cannot build it.
    pub(super) fn rebuild(
        &self,
        memory: GuestRam,
        state: &GuestState,
        clock: ClockKind,
    ) -> Result<Guest, GuestError> {
        let vm = Vm::new(memory.clone())?;
        let vcpu = vm.create_vcpu()?;
        let config = MachineConfig {
            mac: self.identity.mac,
            // Part of the state.
            wall_clock_s: 0,
        };
        let machine = Machine::new(&config, memory);
        let (kicker, clock) = (vcpu.kicker(), self.clock(clock)?);
        let executor = KvmExecutor::restored(vcpu, machine, clock, state)?;
        Ok(Guest::new(executor, kicker, vm))
    }

    /// What a snapshot says of this guest.
    pub(super) fn about(&self, generation: u64, next: LogIndex, clock: ClockKind) -> About {
        About {
            identity: self.identity.clone(),
            generation,
            next: next.0,
            clock,
        }
    }

    fn clock(&self, kind: ClockKind) -> Result<Option<BranchClock<Box<dyn Counter>>>, GuestError> {
        match kind {
            ClockKind::Exits => Ok(None),
            ClockKind::Branches => self.branch_clock().map(Some),
        }
    }

    fn branch_clock(&self) -> Result<BranchClock<Box<dyn Counter>>, GuestError> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let event = perf_counter::event_for(&cpuinfo).ok_or(GuestError::NoCounter)?;
        let counter = PerfCounter::open(event.config).map_err(KvmError::from)?;
        let counter: Box<dyn Counter> = match self.counter_lies_after {
            None => Box::new(counter),
            Some(after) => Box::new(LyingCounter::new(counter, after)),
        };
        Ok(BranchClock::new(counter, self.landing))
    }

    /// A log from the network was compared in the handshake; one from disk is compared here. What the
    /// guest is built with from the log alone may differ.
    fn check(&self, start: &Start) -> Result<(), GuestError> {
        self.check_identity(&Identity {
            cpu_model: start.cpu_model.clone(),
            memory_bytes: start.memory_bytes,
            kernel_sha256: start.kernel_sha256,
            initramfs_sha256: start.initramfs_sha256,
            ..self.identity.clone()
        })
    }

    /// Whether a log or a snapshot is of this guest.
    ///
    /// # Errors
    /// What differs.
    pub(super) fn check_identity(&self, theirs: &Identity) -> Result<(), GuestError> {
        match compare_identities(&self.identity, theirs) {
            None => Ok(()),
            Some(Refused { item, ours, theirs }) => {
                Err(GuestError::OtherGuest { item, theirs, ours })
            }
        }
    }
}

fn read(path: impl AsRef<Path>) -> Result<Vec<u8>, GuestError> {
    let path = path.as_ref();
    std::fs::read(path).map_err(|source| GuestError::Read {
        path: path.display().to_string(),
        source,
    })
}

/// Random bytes of the host; the recorder logs each that the guest sees.
///
/// # Errors
/// When `/dev/urandom` cannot be read.
fn fill_random(bytes: &mut [u8]) -> std::io::Result<()> {
    use std::io::Read;
    std::fs::File::open("/dev/urandom")?.read_exact(bytes)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the guest's RTC starts at the host's wall clock"
)]
fn wall_clock_s() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
