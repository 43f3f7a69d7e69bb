//! The kernel command line: what determinism needs, the machine's devices, the user's wishes.
//!
//! Each base parameter closes a way in for host state or leaves out hardware that is not there;
//! the table says which. A user's parameter that would undo one of them is refused with the reason,
//! not overridden, so that nobody wonders why it has no effect.

#![forbid(unsafe_code)]

use crate::machine::layout;
use std::fmt::Write as _;

/// Base parameters, each with its reason:
/// console on our UART; a panic and a reboot end the guest (through the keyboard controller, the
/// only reset we have); no TSC, XSAVE or local APIC; no KASLR (the image's addresses are the
/// scanned ones); no delay calibration (it spins for a timer tick that the exit clock cannot
/// deliver); the seed we pass is credited; no dummy port writes for delays (each is an exit).
pub const BASE: &str = "console=ttyS0 panic=-1 reboot=k notsc noxsave nolapic nokaslr \
                        lpj=1000000 random.trust_bootloader=on io_delay=none";

/// Parameters that break determinism, by name, with the reason.
const FORBIDDEN: [(&str, &str); 14] = [
    (
        "tsc",
        "the guest has no time-stamp counter: time moves only by log records",
    ),
    (
        "clocksource",
        "the guest's only deterministic clock is kvm-clock",
    ),
    (
        "no-kvmclock",
        "the guest's only deterministic clock is kvm-clock",
    ),
    (
        "kaslr",
        "the loader scans the kernel at its fixed addresses",
    ),
    ("lapic", "the guest has no local APIC"),
    ("apic", "the guest has no local APIC"),
    ("acpi", "the guest has no ACPI tables"),
    (
        "lpj",
        "it is fixed, because calibration needs a timer that the exit clock cannot deliver",
    ),
    (
        "random.trust_cpu",
        "RDRAND is not part of the guest's processor",
    ),
    (
        "random.trust_bootloader",
        "it is fixed: the seed comes from the Start record",
    ),
    ("maxcpus", "the guest has one processor"),
    ("nr_cpus", "the guest has one processor"),
    (
        "reboot",
        "it is fixed: the keyboard controller is the only reset",
    ),
    ("clearcpuid", "the processor model is fixed"),
];

/// A command line that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// Too long.
    #[error(
        "it has {bytes} bytes; the limit is {} with its terminating zero",
        layout::CMDLINE_BYTES_MAX
    )]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A character that would end or garble it.
    #[error("byte {byte:#04x} at offset {offset} is not printable ASCII")]
    Character {
        /// The byte.
        byte: u8,
        /// Where in the user's part.
        offset: usize,
    },
    /// A parameter that breaks determinism.
    #[error("parameter `{parameter}` is not allowed: {reason}")]
    Forbidden {
        /// As the user wrote it.
        parameter: String,
        /// Why.
        reason: &'static str,
    },
}

/// A virtio-mmio device as the kernel is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioWindow {
    /// Guest physical address.
    pub address: u64,
    /// ISA interrupt line.
    pub irq: u8,
}

/// The two devices of the standard machine.
pub const STANDARD_DEVICES: [VirtioWindow; 2] = [
    VirtioWindow {
        address: layout::NET_MMIO,
        irq: layout::IRQ_NET,
    },
    VirtioWindow {
        address: layout::RNG_MMIO,
        irq: layout::IRQ_RNG,
    },
];

/// Base parameters, devices, then the user's `extra`.
///
/// # Errors
/// When `extra` holds a parameter that breaks determinism or bytes that are not printable, or the
/// whole is too long.
pub fn compose(devices: &[VirtioWindow], extra: &str) -> Result<String, CmdlineError> {
    if let Some((offset, byte)) = extra
        .bytes()
        .enumerate()
        .find(|(_, b)| !(0x20..0x7f).contains(b))
    {
        return Err(CmdlineError::Character { byte, offset });
    }
    for parameter in kernel_parameters(extra) {
        if let Some(reason) = forbidden(parameter) {
            return Err(CmdlineError::Forbidden {
                parameter: parameter.into(),
                reason,
            });
        }
    }
    let mut line = BASE.to_owned();
    for device in devices {
        let size_kib = layout::VIRTIO_MMIO_STRIDE >> 10;
        let (address, irq) = (device.address, device.irq);
        // Writing to a String cannot fail.
        let _ok = write!(line, " virtio_mmio.device={size_kib}K@{address:#x}:{irq}");
    }
    if !extra.is_empty() {
        line.push(' ');
        line.push_str(extra);
    }
    check_length(&line)?;
    Ok(line)
}

/// What the kernel reads: everything before ` -- `, which is for init.
fn kernel_parameters(extra: &str) -> impl Iterator<Item = &str> {
    extra
        .split_ascii_whitespace()
        .take_while(|parameter| *parameter != "--")
}

fn forbidden(parameter: &str) -> Option<&'static str> {
    let name = parameter
        .split('=')
        .next()
        .unwrap_or(parameter)
        .trim_matches('"');
    // The kernel treats dashes and underscores alike.
    let plain = |text: &str| text.replace('-', "_");
    let name = plain(name);
    FORBIDDEN
        .iter()
        .find(|(bad, _)| plain(bad) == name)
        .map(|(_, reason)| *reason)
}

/// Checks the length of a whole command line.
///
/// # Errors
/// When it has no room for its terminating zero.
pub fn check_length(line: &str) -> Result<(), CmdlineError> {
    if line.len() < layout::CMDLINE_BYTES_MAX {
        Ok(())
    } else {
        Err(CmdlineError::TooLong { bytes: line.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn devices_and_extra_follow_the_base() {
        let line = compose(&STANDARD_DEVICES, "quiet ip=10.0.0.2").expect("fine");
        assert_eq!(
            line,
            format!(
                "{BASE} virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:10 \
                 quiet ip=10.0.0.2"
            )
        );
        assert!(!BASE.contains("  "), "one space between parameters");
    }

    #[test]
    fn parameters_that_break_determinism_are_refused_with_the_reason() {
        for bad in [
            "tsc=reliable",
            "clocksource=hpet",
            "kaslr",
            "no_kvmclock",
            "lpj=7",
            "\"tsc\"=x",
        ] {
            let refused = compose(&[], bad).expect_err(bad);
            assert!(
                matches!(refused, CmdlineError::Forbidden { .. }),
                "{refused}"
            );
            assert!(refused.to_string().contains(bad), "{refused}");
        }
        // Behind the dashes init may have what it likes; similar names are free.
        compose(&[], "tsc_like=1 -- tsc=reliable").expect("fine");
    }

    #[test]
    fn length_and_characters_are_checked() {
        assert!(matches!(
            compose(&[], "a\nb"),
            Err(CmdlineError::Character {
                byte: 10,
                offset: 1
            })
        ));
        let long = "x".repeat(layout::CMDLINE_BYTES_MAX);
        assert!(matches!(
            compose(&[], &long),
            Err(CmdlineError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_text_gives_a_line_within_the_limit_or_an_error(extra in "\\PC{0,5000}") {
            if let Ok(line) = compose(&STANDARD_DEVICES, &extra) {
                prop_assert!(line.len() < layout::CMDLINE_BYTES_MAX);
                prop_assert!(line.starts_with(BASE));
            }
        }
    }
}
