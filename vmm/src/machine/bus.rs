//! The chips of the machine and which addresses reach them.
//!
//! Every port device is eight bits wide: a wider access is split into byte accesses to consecutive
//! ports, as the ISA bus does. Reads that nothing claims return all ones; writes go nowhere.

#![forbid(unsafe_code)]

use super::layout;
use crate::devices::pic::PicPair;
use crate::devices::pit::Pit;
use crate::devices::reset::ResetPorts;
use crate::devices::rtc::Rtc;
use crate::devices::serial::Serial;
use crate::devices::virtio::mmio::VirtioMmio;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;
use crate::devices::{Device, DeviceContext};

/// A chip on the port bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PortChip {
    Pic,
    Pit,
    Rtc,
    Serial,
    Reset,
}

/// A chip on the memory bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MemoryChip {
    Net,
    Rng,
}

/// Which chip answers at `port`, and the offset it sees. The offsets are the chip's own numbering
/// of registers that a PC scatters over the port space.
const fn route_port(port: u16) -> Option<(PortChip, u64)> {
    let (chip, offset) = match port {
        0x20..=0x21 => (PortChip::Pic, port - 0x20),
        0xa0..=0xa1 => (PortChip::Pic, port - 0xa0 + 2),
        0x4d0..=0x4d1 => (PortChip::Pic, port - 0x4d0 + 4),
        0x40..=0x43 => (PortChip::Pit, port - 0x40),
        0x61 => (PortChip::Pit, 4),
        0x70..=0x71 => (PortChip::Rtc, port - 0x70),
        0x3f8..=0x3ff => (PortChip::Serial, port - 0x3f8),
        0x60 => (PortChip::Reset, 0),
        0x64 => (PortChip::Reset, 1),
        0x92 => (PortChip::Reset, 2),
        0xcf9 => (PortChip::Reset, 3),
        layout::POWER_OFF_PORT..=0x605 => (PortChip::Reset, port - layout::POWER_OFF_PORT + 4),
        0xf4 => (PortChip::Reset, 6),
        _ => return None,
    };
    Some((chip, offset as u64))
}

/// Which chip answers at `gpa`, and the offset it sees.
const fn route_memory(gpa: u64) -> Option<(MemoryChip, u64)> {
    const NET_END: u64 = layout::NET_MMIO + layout::VIRTIO_MMIO_STRIDE - 1;
    const RNG_END: u64 = layout::RNG_MMIO + layout::VIRTIO_MMIO_STRIDE - 1;
    match gpa {
        layout::NET_MMIO..=NET_END => Some((MemoryChip::Net, gpa - layout::NET_MMIO)),
        layout::RNG_MMIO..=RNG_END => Some((MemoryChip::Rng, gpa - layout::RNG_MMIO)),
        _ => None,
    }
}

/// Every chip of the machine.
#[derive(Debug)]
pub struct Chips {
    /// Interrupt controllers.
    pub pic: PicPair,
    /// Interval timer.
    pub pit: Pit,
    /// Real-time clock.
    pub rtc: Rtc,
    /// Console.
    pub serial: Serial,
    /// Reset and power-off.
    pub reset: ResetPorts,
    /// Network device 0.
    pub net: VirtioMmio<Net>,
    /// Entropy device.
    pub rng: VirtioMmio<Rng>,
}

impl Chips {
    /// All chips after power-on.
    #[must_use]
    pub fn new(mac: [u8; 6], wall_clock_s: u64) -> Self {
        Self {
            pic: PicPair::new(),
            pit: Pit::new(layout::IRQ_PIT),
            rtc: Rtc::new(layout::IRQ_RTC, wall_clock_s),
            serial: Serial::new(layout::IRQ_SERIAL),
            reset: ResetPorts::new(),
            net: VirtioMmio::new(Net::new(0, mac), layout::IRQ_NET),
            rng: VirtioMmio::new(Rng::new(), layout::IRQ_RNG),
        }
    }

    /// One access of `data.len()` bytes at `port`.
    pub fn read_port(&mut self, port: u16, data: &mut [u8], ctx: &mut DeviceContext<'_>) {
        for (at, byte) in data.chunks_exact_mut(1).enumerate() {
            byte.fill(0xff);
            let Some((chip, offset)) = byte_port(port, at).and_then(route_port) else {
                continue;
            };
            match chip {
                PortChip::Pic => self.pic.read(offset, byte, ctx),
                PortChip::Pit => self.pit.read(offset, byte, ctx),
                PortChip::Rtc => self.rtc.read(offset, byte, ctx),
                PortChip::Serial => self.serial.read(offset, byte, ctx),
                PortChip::Reset => self.reset.read(offset, byte, ctx),
            }
        }
    }

    /// One access of `data.len()` bytes at `port`.
    pub fn write_port(&mut self, port: u16, data: &[u8], ctx: &mut DeviceContext<'_>) {
        for (at, byte) in data.chunks_exact(1).enumerate() {
            let Some((chip, offset)) = byte_port(port, at).and_then(route_port) else {
                continue;
            };
            match chip {
                PortChip::Pic => self.pic.write(offset, byte, ctx),
                PortChip::Pit => self.pit.write(offset, byte, ctx),
                PortChip::Rtc => self.rtc.write(offset, byte, ctx),
                PortChip::Serial => self.serial.write(offset, byte, ctx),
                PortChip::Reset => self.reset.write(offset, byte, ctx),
            }
        }
    }

    /// One access of `data.len()` bytes at `gpa`.
    pub fn read_memory(&mut self, gpa: u64, data: &mut [u8], ctx: &mut DeviceContext<'_>) {
        match route_memory(gpa) {
            Some((MemoryChip::Net, offset)) => self.net.read(offset, data, ctx),
            Some((MemoryChip::Rng, offset)) => self.rng.read(offset, data, ctx),
            None => data.fill(0xff),
        }
    }

    /// One access of `data.len()` bytes at `gpa`.
    pub fn write_memory(&mut self, gpa: u64, data: &[u8], ctx: &mut DeviceContext<'_>) {
        match route_memory(gpa) {
            Some((MemoryChip::Net, offset)) => self.net.write(offset, data, ctx),
            Some((MemoryChip::Rng, offset)) => self.rng.write(offset, data, ctx),
            None => {}
        }
    }
}

/// The port of byte `at` of a wider access; none past the end of the port space.
fn byte_port(port: u16, at: usize) -> Option<u16> {
    u16::try_from(at).ok().and_then(|at| port.checked_add(at))
}
