//! 16550A serial port (National Semiconductor PC16550D datasheet), byte-wide registers 0 to 7.
//!
//! The transmitter is infinitely fast: a byte written to THR becomes an [`Effect::Console`] at once
//! and THR is empty again, which asserts the THR-empty interrupt as the chip would. Input waits in
//! the receive FIFO; the caller asks [`Serial::room`] first. The interrupt output is a *level*,
//! recomputed after every access from the conditions that are pending and enabled, and gated by
//! OUT2 as on a PC.
//!
//! Not vm-superio's `Serial`: that one signals edges through a trigger, drops a pending receive
//! interrupt when IIR is read, reports two causes or-ed together, and its restore raises interrupts.
//!
//! Left out: baud rate timing, parity and framing errors, modem status changes, trigger levels
//! (any byte in the FIFO counts as received data).

#![forbid(unsafe_code)]

use super::{Device, DeviceContext, Effect, Misuse, RestoreError, bytes_from, count};
use logging_channel::record::limits::INPUT_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Bytes the receive FIFO holds: more than the chip's 16, so that every record fits an empty one.
pub const RECEIVE_BYTES_MAX: usize = INPUT_BYTES_MAX;

const IER_RECEIVED: u8 = 0x01;
const IER_THR_EMPTY: u8 = 0x02;
const IER_VALID: u8 = 0x0f;
const IIR_NONE: u8 = 0x01;
const IIR_THR_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_FIFO_ON: u8 = 0xc0;
const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RECEIVE: u8 = 0x02;
const LCR_DLAB: u8 = 0x80;
const LCR_8N1: u8 = 0x03;
const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;
const MCR_VALID: u8 = 0x1f;
const LSR_DATA_READY: u8 = 0x01;
const LSR_TRANSMITTER_IDLE: u8 = 0x60;
const MSR_CTS_DSR_DCD: u8 = 0xb0;
const DIVISOR_9600: u16 = 12;

/// Saved state of the port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch.
    pub divisor: u16,
    /// Interrupt enable register.
    pub ier: u8,
    /// Whether the FIFOs are on (FCR bit 0).
    pub fifo: bool,
    /// Line control register.
    pub lcr: u8,
    /// Modem control register.
    pub mcr: u8,
    /// Scratch register.
    pub scratch: u8,
    /// The THR-empty interrupt is pending.
    pub thr_empty_pending: bool,
    /// Received bytes, oldest first; at most [`RECEIVE_BYTES_MAX`].
    pub received: VecDeque<u8>,
    /// What the guest did wrong.
    pub misuse: Misuse,
}

/// The serial port.
#[derive(Debug)]
pub struct Serial {
    irq_line: u8,
    state: SerialState,
}

impl Serial {
    /// A port after reset that drives `irq_line`.
    #[must_use]
    pub fn new(irq_line: u8) -> Self {
        Self {
            irq_line,
            state: SerialState {
                divisor: DIVISOR_9600,
                ier: 0,
                fifo: false,
                lcr: LCR_8N1,
                mcr: 0,
                scratch: 0,
                thr_empty_pending: false,
                received: VecDeque::new(),
                misuse: Misuse::default(),
            },
        }
    }

    /// Bytes of input that fit now. None in loopback, when the line is disconnected.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.state.mcr & MCR_LOOP != 0 {
            return 0;
        }
        RECEIVE_BYTES_MAX.saturating_sub(self.state.received.len())
    }

    /// Whether `length` bytes of input can be applied now; if not, they should wait. While the guest
    /// does not ask for received data, input that does not fit is accepted, to be lost as on a
    /// port that nobody has opened: what waits behind it must not wait for ever.
    #[must_use]
    pub fn accepts(&self, length: usize) -> bool {
        length <= self.room() || self.state.ier & IER_RECEIVED == 0
    }

    /// Input arrives. Bytes beyond [`Serial::room`] are lost and counted.
    pub fn receive(&mut self, bytes: &[u8], ctx: &mut DeviceContext<'_>) {
        let taken = bytes.len().min(self.room());
        self.state.received.extend(&bytes[..taken]);
        count(
            &mut self.state.misuse.dropped_receive,
            (bytes.len() - taken) as u64,
        );
        self.drive_line(ctx);
    }

    /// The highest-priority pending and enabled cause, as IIR names it.
    fn cause(&self) -> u8 {
        let s = &self.state;
        if s.ier & IER_RECEIVED != 0 && !s.received.is_empty() {
            IIR_RECEIVED
        } else if s.ier & IER_THR_EMPTY != 0 && s.thr_empty_pending {
            IIR_THR_EMPTY
        } else {
            IIR_NONE
        }
    }

    fn drive_line(&self, ctx: &mut DeviceContext<'_>) {
        let connected = self.state.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
        ctx.irq
            .set(self.irq_line, connected && self.cause() != IIR_NONE);
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let s = &mut self.state;
        let dlab = s.lcr & LCR_DLAB != 0;
        let [divisor_low, divisor_high] = s.divisor.to_le_bytes();
        match offset {
            0 if dlab => divisor_low,
            1 if dlab => divisor_high,
            0 => s.received.pop_front().unwrap_or(0),
            1 => s.ier,
            2 => self.read_iir(),
            3 => s.lcr,
            4 => s.mcr,
            5 => {
                LSR_TRANSMITTER_IDLE
                    | if s.received.is_empty() {
                        0
                    } else {
                        LSR_DATA_READY
                    }
            }
            6 => self.modem_status(),
            7 => s.scratch,
            _ => {
                count(&mut s.misuse.bad_access, 1);
                0xff
            }
        }
    }

    /// Reading IIR while it names the THR-empty interrupt acknowledges it.
    fn read_iir(&mut self) -> u8 {
        let cause = self.cause();
        if cause == IIR_THR_EMPTY {
            self.state.thr_empty_pending = false;
        }
        cause | if self.state.fifo { IIR_FIFO_ON } else { 0 }
    }

    /// In loopback the four modem outputs feed the four inputs: RTS, DTR, OUT1, OUT2.
    fn modem_status(&self) -> u8 {
        let mcr = self.state.mcr;
        if mcr & MCR_LOOP == 0 {
            return MSR_CTS_DSR_DCD;
        }
        let dtr_to_dsr = (mcr & 0x01) << 5;
        let rts_to_cts = (mcr & 0x02) << 3;
        let out_to_ri_dcd = (mcr & 0x0c) << 4;
        dtr_to_dsr | rts_to_cts | out_to_ri_dcd
    }

    fn write_register(&mut self, offset: u64, value: u8, ctx: &mut DeviceContext<'_>) {
        let s = &mut self.state;
        let dlab = s.lcr & LCR_DLAB != 0;
        match offset {
            0 if dlab => s.divisor = s.divisor & 0xff00 | u16::from(value),
            1 if dlab => s.divisor = s.divisor & 0x00ff | u16::from(value) << 8,
            0 => self.transmit(value, ctx),
            1 => {
                // Enabling the interrupt while THR is empty, which it always is, asserts it.
                // Linux's start-up test of the port depends on this.
                let newly_enabled = value & !s.ier & IER_THR_EMPTY != 0;
                s.thr_empty_pending |= newly_enabled;
                s.ier = value & IER_VALID;
            }
            2 => {
                let toggled = s.fifo != (value & FCR_ENABLE != 0);
                s.fifo = value & FCR_ENABLE != 0;
                if toggled || value & FCR_CLEAR_RECEIVE != 0 {
                    s.received.clear();
                }
            }
            3 => s.lcr = value,
            4 => s.mcr = value & MCR_VALID,
            5 | 6 => {}
            7 => s.scratch = value,
            _ => count(&mut s.misuse.bad_access, 1),
        }
    }

    fn transmit(&mut self, byte: u8, ctx: &mut DeviceContext<'_>) {
        if self.state.mcr & MCR_LOOP == 0 {
            ctx.effects.push(Effect::Console(byte));
        } else if self.state.received.len() < RECEIVE_BYTES_MAX {
            self.state.received.push_back(byte);
        }
        self.state.thr_empty_pending = true;
    }
}

impl Device for Serial {
    type State = SerialState;

    fn name(&self) -> &'static str {
        "serial"
    }

    fn read(&mut self, offset: u64, data: &mut [u8], ctx: &mut DeviceContext<'_>) {
        for (at, byte) in bytes_from(offset).zip(data) {
            *byte = self.read_register(at);
        }
        self.drive_line(ctx);
    }

    fn write(&mut self, offset: u64, data: &[u8], ctx: &mut DeviceContext<'_>) {
        for (at, &byte) in bytes_from(offset).zip(data) {
            self.write_register(at, byte, ctx);
            // After each byte: the edge a byte makes must not vanish behind the next one.
            self.drive_line(ctx);
        }
    }

    fn save(&self) -> SerialState {
        self.state.clone()
    }

    fn restore(&mut self, state: &SerialState) -> Result<(), RestoreError> {
        let refuse = |field, found: String| {
            Err(RestoreError {
                device: "serial",
                field,
                found,
            })
        };
        if state.received.len() > RECEIVE_BYTES_MAX {
            return refuse("received", format!("{} bytes", state.received.len()));
        }
        if state.ier & !IER_VALID != 0 {
            return refuse("ier", format!("{:#x}", state.ier));
        }
        if state.mcr & !MCR_VALID != 0 {
            return refuse("mcr", format!("{:#x}", state.mcr));
        }
        self.state = state.clone();
        Ok(())
    }

    fn misuse(&self) -> Misuse {
        self.state.misuse
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::conformance::{Bench, Subject, conformance_tests};

    impl Subject for Serial {
        fn fresh() -> Self {
            Self::new(4)
        }

        fn offsets() -> Vec<u64> {
            (0..8).collect()
        }

        fn input(&mut self, bytes: &[u8], ctx: &mut DeviceContext<'_>) {
            self.receive(bytes, ctx);
        }
    }

    conformance_tests!(Serial);

    fn read(port: &mut Serial, bench: &mut Bench, offset: u64) -> u8 {
        let mut byte = [0];
        port.read(offset, &mut byte, &mut bench.ctx());
        byte[0]
    }

    fn write(port: &mut Serial, bench: &mut Bench, offset: u64, value: u8) {
        port.write(offset, &[value], &mut bench.ctx());
    }

    fn line_is_high(bench: &Bench) -> bool {
        bench.irq.levels() & 1 << 4 != 0
    }

    /// drivers/tty/serial/8250/8250_port.c: autoconfig(), autoconfig_16550a().
    #[test]
    fn linux_detects_a_16550a() {
        let (mut port, mut bench) = (Serial::new(4), Bench::new());
        write(&mut port, &mut bench, 1, 0);
        assert_eq!(read(&mut port, &mut bench, 1), 0);
        write(&mut port, &mut bench, 1, 0x0f);
        assert_eq!(read(&mut port, &mut bench, 1) & 0x0f, 0x0f);
        write(&mut port, &mut bench, 1, 0);
        write(&mut port, &mut bench, 4, 0x1a);
        assert_eq!(read(&mut port, &mut bench, 6) & 0xf0, 0x90);
        write(&mut port, &mut bench, 4, 0);
        write(&mut port, &mut bench, 2, 0x01);
        assert_eq!(read(&mut port, &mut bench, 2) >> 6, 3, "FIFOs work");
        write(&mut port, &mut bench, 2, 0x21);
        assert_eq!(read(&mut port, &mut bench, 2) >> 5, 6, "not a 16750");
        write(&mut port, &mut bench, 1, 0x40);
        assert_eq!(read(&mut port, &mut bench, 1) & 0x40, 0, "not an XScale");
    }

    /// serial8250_do_startup(): re-enabling the interrupt must assert it again.
    #[test]
    fn linux_trusts_the_thr_empty_interrupt() {
        let (mut port, mut bench) = (Serial::new(4), Bench::new());
        for _ in 0..2 {
            write(&mut port, &mut bench, 1, IER_THR_EMPTY);
            assert_eq!(read(&mut port, &mut bench, 2) & 0x0f, IIR_THR_EMPTY);
            assert_eq!(read(&mut port, &mut bench, 2) & 0x0f, IIR_NONE);
            write(&mut port, &mut bench, 1, 0);
        }
    }

    #[test]
    fn each_transmitted_byte_interrupts_again() {
        let (mut port, mut bench) = (Serial::new(4), Bench::new());
        write(&mut port, &mut bench, 4, MCR_OUT2);
        write(&mut port, &mut bench, 1, IER_THR_EMPTY);
        for byte in *b"ok" {
            assert!(line_is_high(&bench));
            read(&mut port, &mut bench, 2);
            assert!(!line_is_high(&bench), "IIR acknowledges");
            write(&mut port, &mut bench, 0, byte);
        }
        assert_eq!(
            bench.effects,
            [Effect::Console(b'o'), Effect::Console(b'k')]
        );
    }

    #[test]
    fn received_data_has_priority_and_lasts_until_read() {
        let (mut port, mut bench) = (Serial::new(4), Bench::new());
        write(&mut port, &mut bench, 4, MCR_OUT2);
        write(&mut port, &mut bench, 1, 0x03);
        port.receive(b"ab", &mut bench.ctx());
        assert_eq!(read(&mut port, &mut bench, 2) & 0x0f, IIR_RECEIVED);
        assert_eq!(read(&mut port, &mut bench, 5) & 1, 1);
        assert_eq!(read(&mut port, &mut bench, 0), b'a');
        assert_eq!(read(&mut port, &mut bench, 2) & 0x0f, IIR_RECEIVED);
        assert_eq!(read(&mut port, &mut bench, 0), b'b');
        assert_eq!(read(&mut port, &mut bench, 2) & 0x0f, IIR_THR_EMPTY);
        assert_eq!(read(&mut port, &mut bench, 2) & 0x0f, IIR_NONE);
        assert!(!line_is_high(&bench));
    }

    #[test]
    fn a_full_fifo_loses_bytes_and_counts_them() {
        let (mut port, mut bench) = (Serial::new(4), Bench::new());
        port.receive(&[7; RECEIVE_BYTES_MAX + 3], &mut bench.ctx());
        assert_eq!(port.room(), 0);
        assert_eq!(port.misuse().dropped_receive, 3);
    }

    #[test]
    fn input_waits_only_for_a_guest_that_wants_it() {
        let (mut port, mut bench) = (Serial::new(4), Bench::new());
        port.receive(&[7; RECEIVE_BYTES_MAX], &mut bench.ctx());
        assert!(port.accepts(1), "nobody has opened the port");
        write(&mut port, &mut bench, 1, IER_RECEIVED);
        assert!(!port.accepts(1));
        read(&mut port, &mut bench, 0);
        assert!(port.accepts(1));
    }

    #[test]
    fn loopback_disconnects_the_line() {
        let (mut port, mut bench) = (Serial::new(4), Bench::new());
        write(&mut port, &mut bench, 4, MCR_LOOP);
        assert_eq!(port.room(), 0);
        write(&mut port, &mut bench, 0, 0x55);
        assert!(bench.effects.is_empty());
        assert_eq!(read(&mut port, &mut bench, 0), 0x55);
    }
}
