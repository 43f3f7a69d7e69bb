//! The guest's processor and memory on KVM. Everything that calls `/dev/kvm` or `perf_event_open`
//! is here; the other rooms see [`vcpu::Vcpu`], [`vm::Vm`] and plain data.
//!
//! What is deliberately absent: the in-kernel interrupt controllers and timer (their clocks run on
//! host time), KVM's own paravirtual clock and asynchronous page faults, the guest PMU.

pub mod core_pmu;
pub mod cpuid;
pub mod dirty;
pub mod exit;
pub mod guest_debug;
pub mod guest_memory;
pub mod interrupt;
pub mod kick;
pub mod msr;
pub mod perf_counter;
mod run_page;
mod state;
pub mod vcpu;
pub mod vm;

/// A request to KVM failed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// `/dev/kvm` cannot be opened.
    #[error(
        "cannot open /dev/kvm: {0} (is the kvm_intel or kvm_amd module loaded, and may this user open the device?)"
    )]
    Open(#[source] kvm_ioctls::Error),
    /// One call failed.
    #[error("KVM refused {call}: {source}")]
    Call {
        /// Which request.
        call: &'static str,
        /// What the kernel said.
        source: kvm_ioctls::Error,
    },
    /// The host's KVM lacks a capability that determinism rests on.
    #[error("this host's KVM lacks {0}; a newer kernel is needed")]
    Missing(&'static str),
    /// The host's processor lacks parts of the guest CPU model.
    #[error(transparent)]
    Cpu(#[from] cpuid::MissingFeatures),
    /// A saved state cannot be made or used.
    #[error("the guest's state: {0}")]
    State(String),
    /// Guest memory could not be had.
    #[error(transparent)]
    Memory(#[from] guest_memory::GuestMemoryError),
    /// KVM_RUN ended in a way that no guest of ours should cause.
    #[error(transparent)]
    Exit(#[from] exit::BadExit),
    /// An answer that does not fit the exit that asked.
    #[error("answer {answer} does not fit the pending {pending}")]
    Answer {
        /// What was given.
        answer: String,
        /// What was asked.
        pending: String,
    },
    /// The performance counter failed, or cannot be believed.
    #[error(transparent)]
    Counter(#[from] crate::clock::branch_clock::CounterError),
    /// The branch clock was asked for without a counter.
    #[error("no performance counter was opened for the branch clock")]
    NoCounter,
    /// The guest debugs itself in a way that no landing can be made beside.
    #[error("the guest {0}: it cannot be brought to a recorded point")]
    GuestDebugs(&'static str),
    /// Signal set-up failed.
    #[error("cannot set up the kick signal: {0}")]
    Kick(#[source] std::io::Error),
}

/// Names the call in an error.
fn call<T>(call: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, KvmError> {
    result.map_err(|source| KvmError::Call { call, source })
}
