//! Why the guest left the processor, free of KVM types.
//!
//! Only *synchronous* exits exist here: each is a function of guest state and counts towards the
//! execution point. A kick (signal) is not an exit and has no value of this type.

#![forbid(unsafe_code)]

/// A synchronous exit. Reads are answered through [`Answer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmExit {
    /// IN or INS: `count` accesses of `size` bytes.
    PortRead {
        /// Port number.
        port: u16,
        /// 1, 2 or 4.
        size: u8,
        /// Accesses; more than 1 for string instructions.
        count: u32,
    },
    /// OUT or OUTS: `data` is `count * size` bytes.
    PortWrite {
        /// Port number.
        port: u16,
        /// 1, 2 or 4.
        size: u8,
        /// All bytes written.
        data: Vec<u8>,
    },
    /// Read outside RAM.
    MmioRead {
        /// Guest physical address.
        gpa: u64,
        /// 1 to 8 bytes.
        length: u8,
    },
    /// Write outside RAM.
    MmioWrite {
        /// Guest physical address.
        gpa: u64,
        /// 1 to 8 bytes.
        data: Vec<u8>,
    },
    /// HLT.
    Halt,
    /// The interrupt window that was requested is open.
    WindowOpen,
    /// Read of a filtered MSR.
    MsrRead {
        /// MSR number.
        index: u32,
    },
    /// Write of a filtered MSR.
    MsrWrite {
        /// MSR number.
        index: u32,
        /// Value written.
        value: u64,
    },
    /// Triple fault.
    Shutdown,
}

/// What the processor is told before the guest goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing to say.
    None,
    /// Bytes for a port or memory read, exactly as many as were asked.
    Data(Vec<u8>),
    /// Value of an MSR.
    Msr(u64),
    /// The MSR does not exist: #GP.
    MsrFault,
}
