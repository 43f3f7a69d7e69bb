//! Linux into guest memory, and the processor state it is entered with.
//!
//! The guest starts as the 64-bit boot protocol says (Documentation/x86/boot.rst): RSI points to
//! the zero page, the first 4 GiB are mapped one to one, flat segments, interrupts off. Images come
//! from users, so they are hostile here: every offset is checked and nothing is allocated
//! by a size that an image states without a limit of ours.
//!
//! Both sides of a pair run this on the same bytes and get the same memory: nothing here reads a
//! clock, a random source or a host property.
//!
//! Left out: real-mode and 32-bit entry, EFI, ACPI tables, relocation (KASLR is off).

#![forbid(unsafe_code)]

pub mod cmdline;
pub mod elf;
mod entry;
mod initramfs;
pub mod load;
pub mod payload;
pub mod rewrite;
pub mod scan;
mod zero_page;

use crate::machine::cpu_state::CpuState;
use crate::machine::ram::GuestRam;
use std::borrow::Cow;

/// What is booted.
#[derive(Debug, Clone, Copy)]
pub struct BootSource<'a> {
    /// vmlinux or bzImage.
    pub kernel: &'a [u8],
    /// Initramfs; empty for none.
    pub initramfs: &'a [u8],
    /// The whole command line, made by [`cmdline::compose`].
    pub cmdline: &'a str,
    /// Seed of the guest's random generator.
    pub rng_seed: &'a [u8; 32],
}

/// The guest cannot be booted from what was given.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Compressed kernel.
    #[error("kernel image: {0}")]
    Payload(#[from] payload::PayloadError),
    /// Not an ELF file that we can load.
    #[error("kernel image: {0}")]
    Elf(#[from] elf::ElfError),
    /// Reads the time-stamp counter.
    #[error("kernel image: {0}")]
    TimeStamp(#[from] scan::TimeStampUse),
    /// Does not fit.
    #[error("kernel image: {0}")]
    Load(#[from] load::LoadError),
    /// Bad initramfs.
    #[error("initramfs: {0}")]
    Initramfs(#[from] initramfs::InitramfsError),
    /// Bad command line.
    #[error("kernel command line: {0}")]
    Cmdline(#[from] cmdline::CmdlineError),
    /// A structure of ours does not fit guest memory.
    #[error("guest memory is too small for the boot structures: {0}")]
    Memory(String),
}

/// The uncompressed kernel: `kernel` itself, or what is packed in a bzImage.
///
/// # Errors
/// When it is neither, is damaged, or uses a compression that we do not have.
pub fn unpack(kernel: &[u8]) -> Result<Cow<'_, [u8]>, BootError> {
    Ok(payload::unpack(kernel)?)
}

/// Scans the kernel, fills fresh (zero) guest memory and returns the state of the processor at the kernel's entry.
///
/// # Errors
/// When an image is damaged, reads the time-stamp counter, or something does not fit.
pub fn prepare(memory: &GuestRam, source: &BootSource<'_>) -> Result<CpuState, BootError> {
    let vmlinux = unpack(source.kernel)?;
    prepare_vmlinux(memory, &vmlinux, source)
}

/// As [`prepare`], with the kernel already unpacked (and perhaps rewritten).
///
/// # Errors
/// As [`prepare`].
pub fn prepare_vmlinux(
    memory: &GuestRam,
    vmlinux: &[u8],
    source: &BootSource<'_>,
) -> Result<CpuState, BootError> {
    scan::refuse(&scan::scan(vmlinux)?)?;
    let image = elf::Elf::parse(vmlinux)?;
    let kernel = load::load(memory, &image)?;
    let initramfs = initramfs::place(memory, source.initramfs, kernel.end)?;
    zero_page::write(memory, source.cmdline, source.rng_seed, initramfs)?;
    entry::write(memory, kernel.entry)
}
