//! From KVM's exit reasons to [`VmExit`].
//!
//! Everything that a guest of ours can cause is a [`VmExit`]; the rest means that the host's KVM is
//! unfit or something is broken, and is a [`BadExit`] with the reason, never a guess.

use crate::machine::exit::VmExit;
use kvm_ioctls::VcpuExit;

/// KVM_RUN ended in a way that no guest of ours should cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadExit {
    /// KVM gave up.
    #[error(
        "KVM cannot go on with the guest ({}) at RIP {rip:#x}: details {details:x?}; `understudy doctor` tells whether this host's KVM is fit",
        suberror_name(*suberror)
    )]
    Internal {
        /// KVM's sub-error.
        suberror: u32,
        /// Guest RIP.
        rip: u64,
        /// KVM's details; for an emulation failure they hold the instruction bytes.
        details: Vec<u64>,
    },
    /// The processor refused the guest state.
    #[error("the processor refused to enter the guest: hardware reason {reason:#x}")]
    FailEntry {
        /// Reason code of the hardware.
        reason: u64,
    },
    /// Guest memory that the host cannot provide.
    #[error("the host cannot provide guest memory at {gpa:#x} ({size} bytes)")]
    MemoryFault {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// An exit that nothing of ours asks for.
    #[error("unexpected exit from KVM_RUN: {0}")]
    Unexpected(String),
}

fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        1 => "an instruction that it cannot emulate",
        2 => "an exception while delivering another",
        3 => "an exit while delivering an event",
        4 => "an exit reason that it does not know",
        _ => "an internal error",
    }
}

/// What KVM_RUN came back with, before details that need the run page.
pub(super) enum Raw {
    /// A synchronous exit; for port accesses still without `size` and `count`.
    Exit(VmExit),
    /// Port read: shape is in the run page.
    PortRead(u16),
    /// Port write with its bytes: shape is in the run page.
    PortWrite(u16, Vec<u8>),
    /// Breakpoint or single step: linear address and DR6.
    Debug { pc: u64, dr6: u64 },
    /// Internal error: details are in the run page.
    Internal,
    /// Signal.
    Interrupted,
    /// Anything else.
    Bad(BadExit),
}

/// Copies an exit out of the run page.
pub(super) fn decode(exit: VcpuExit<'_>) -> Raw {
    match exit {
        VcpuExit::IoIn(port, _) => Raw::PortRead(port),
        VcpuExit::IoOut(port, data) => Raw::PortWrite(port, data.to_vec()),
        VcpuExit::MmioRead(gpa, data) => Raw::Exit(VmExit::MmioRead {
            gpa,
            length: data.len() as u8,
        }),
        VcpuExit::MmioWrite(gpa, data) => Raw::Exit(VmExit::MmioWrite {
            gpa,
            data: data.to_vec(),
        }),
        VcpuExit::Hlt => Raw::Exit(VmExit::Halt),
        VcpuExit::IrqWindowOpen => Raw::Exit(VmExit::WindowOpen),
        VcpuExit::X86Rdmsr(msr) => Raw::Exit(VmExit::MsrRead { index: msr.index }),
        VcpuExit::X86Wrmsr(msr) => Raw::Exit(VmExit::MsrWrite {
            index: msr.index,
            value: msr.data,
        }),
        VcpuExit::Shutdown => Raw::Exit(VmExit::Shutdown),
        VcpuExit::Debug(debug) => Raw::Debug {
            pc: debug.pc,
            dr6: debug.dr6,
        },
        VcpuExit::Intr => Raw::Interrupted,
        VcpuExit::InternalError => Raw::Internal,
        VcpuExit::FailEntry(reason, _) => Raw::Bad(BadExit::FailEntry { reason }),
        VcpuExit::MemoryFault { gpa, size, .. } => Raw::Bad(BadExit::MemoryFault { gpa, size }),
        VcpuExit::Hypercall(call) => {
            Raw::Bad(BadExit::Unexpected(format!("hypercall {:#x}", call.nr)))
        }
        other => Raw::Bad(BadExit::Unexpected(format!("{other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_copied_out() {
        let data = [1, 2, 3, 4];
        assert!(matches!(
            decode(VcpuExit::MmioWrite(0xd000_0000, &data)),
            Raw::Exit(VmExit::MmioWrite { gpa: 0xd000_0000, data }) if data == [1, 2, 3, 4]
        ));
        let mut place = [0; 2];
        assert!(matches!(
            decode(VcpuExit::MmioRead(5, &mut place)),
            Raw::Exit(VmExit::MmioRead { gpa: 5, length: 2 })
        ));
        assert!(matches!(
            decode(VcpuExit::IoOut(0x80, &data)),
            Raw::PortWrite(0x80, _)
        ));
        assert!(matches!(decode(VcpuExit::Hlt), Raw::Exit(VmExit::Halt)));
    }

    #[test]
    fn unknown_exits_name_themselves() {
        let Raw::Bad(bad) = decode(VcpuExit::Unsupported(77)) else {
            panic!("not bad")
        };
        assert!(bad.to_string().contains("77"), "{bad}");
        let internal = BadExit::Internal {
            suberror: 1,
            rip: 0x1000,
            details: vec![0xcc],
        };
        assert!(
            internal.to_string().contains("cannot emulate"),
            "{internal}"
        );
        assert!(internal.to_string().contains("0x1000"), "{internal}");
    }
}
