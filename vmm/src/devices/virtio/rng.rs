//! Entropy device (virtio 1.2 section 5.4): one queue of buffers to fill.
//!
//! A request is served from the log: the device says how many bytes it wants with
//! [`Effect::WantEntropy`], an Entropy record brings them to [`VirtioMmio::deliver`]. One request is
//! outstanding at a time; the next is taken up when it is answered.

#![forbid(unsafe_code)]

use super::Function;
use super::mmio::VirtioMmio;
use super::ring::RingFault;
use super::transport::Transport;
use crate::devices::{DeviceContext, Effect, RestoreError};
use logging_channel::record::limits::INPUT_BYTES_MAX;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

const REQUEST_QUEUE: usize = 0;
/// Largest size of the queue.
pub const QUEUE_SIZE_MAX: u16 = 64;
/// Most bytes given for one request; a larger buffer comes back partly filled.
pub const REQUEST_BYTES_MAX: u32 = INPUT_BYTES_MAX as u32;

/// The request being served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Head of its chain, taken off the available ring.
    pub head: u16,
    /// Bytes asked for, 1 to [`REQUEST_BYTES_MAX`].
    pub wanted_bytes: u32,
}

/// An entropy device's function.
#[derive(Debug, Default)]
pub struct Rng {
    request: Option<Request>,
}

impl Rng {
    /// A device without requests.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up the next request, if none is outstanding.
    fn take_up(
        &mut self,
        transport: &mut Transport,
        ctx: &mut DeviceContext<'_>,
    ) -> Result<(), RingFault> {
        if self.request.is_some() {
            return Ok(());
        }
        let Some(chain) = transport.ring_mut(REQUEST_QUEUE).pop(ctx.memory)? else {
            return Ok(());
        };
        let room = chain.writable_bytes();
        if chain.readable_bytes() != 0 || room == 0 {
            return Err(RingFault::Chain);
        }
        let wanted_bytes = room.min(u64::from(REQUEST_BYTES_MAX)) as u32;
        self.request = Some(Request {
            head: chain.head,
            wanted_bytes,
        });
        ctx.effects.push(Effect::WantEntropy(wanted_bytes));
        Ok(())
    }

    fn answer(
        &mut self,
        bytes: &[u8],
        transport: &mut Transport,
        ctx: &mut DeviceContext<'_>,
    ) -> Result<(), RingFault> {
        let Some(request) = self.request.take() else {
            return Ok(());
        };
        let bytes = &bytes[..bytes.len().min(request.wanted_bytes as usize)];
        let ring = transport.ring_mut(REQUEST_QUEUE);
        // The driver may have rewritten the chain since: walk and check it again.
        let written = ring
            .walk_again(request.head, ctx.memory)?
            .write(ctx.memory, bytes)?;
        ring.add_used(request.head, written, ctx.memory)?;
        transport.interrupt_for(REQUEST_QUEUE, ctx)?;
        self.take_up(transport, ctx)
    }
}

impl Function for Rng {
    type State = Option<Request>;

    fn name(&self) -> &'static str {
        "rng"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE_MAX]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn notify(&mut self, _queue: usize, transport: &mut Transport, ctx: &mut DeviceContext<'_>) {
        if let Err(fault) = self.take_up(transport, ctx) {
            transport.fail(fault, ctx);
        }
    }

    fn reset(&mut self) {
        self.request = None;
    }

    fn save(&self) -> Option<Request> {
        self.request
    }

    fn restore(&mut self, state: &Option<Request>) -> Result<(), RestoreError> {
        let wanted = 1..=REQUEST_BYTES_MAX;
        if let Some(request) = state
            && (!wanted.contains(&request.wanted_bytes) || request.head >= QUEUE_SIZE_MAX)
        {
            return Err(RestoreError {
                device: "rng",
                field: "request",
                found: format!("{request:?}"),
            });
        }
        self.request = *state;
        Ok(())
    }
}

impl VirtioMmio<Rng> {
    /// Bytes the outstanding request wants; 0 when there is none.
    #[must_use]
    pub fn wanted_bytes(&self) -> usize {
        match self.function.request {
            Some(request) if self.transport.is_live() => request.wanted_bytes as usize,
            _ => 0,
        }
    }

    /// Answers the outstanding request with `bytes`; surplus is ignored, and so is everything when
    /// there is no request.
    pub fn deliver(&mut self, bytes: &[u8], ctx: &mut DeviceContext<'_>) {
        if self.wanted_bytes() == 0 {
            return;
        }
        if let Err(fault) = self.function.answer(bytes, &mut self.transport, ctx) {
            self.transport.fail(fault, ctx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mock_driver::{self as driver, NEEDS_RESET, NEXT, WRITE};
    use super::*;
    use crate::devices::Device;
    use crate::devices::conformance::{Bench, Subject, conformance_tests};
    use vm_memory::{Bytes, GuestAddress};

    impl Subject for VirtioMmio<Rng> {
        fn fresh() -> Self {
            Self::new(Rng::new(), 10)
        }

        fn offsets() -> Vec<u64> {
            driver::registers()
        }

        fn set_up(&mut self, bench: &mut Bench) {
            driver::probe(self, bench);
            driver::describe(bench, 0, 0, (0x8000, 32, WRITE, 0));
            driver::describe(bench, 0, 1, (0x8100, 5, WRITE, 0));
            driver::offer(bench, 0, 0);
            driver::offer(bench, 0, 1);
        }

        fn input(&mut self, bytes: &[u8], ctx: &mut DeviceContext<'_>) {
            self.deliver(bytes, ctx);
        }
    }

    conformance_tests!(VirtioMmio<Rng>);

    fn with_requests() -> (VirtioMmio<Rng>, Bench) {
        let (mut rng, mut bench) = (VirtioMmio::<Rng>::fresh(), Bench::new());
        rng.set_up(&mut bench);
        driver::write(&mut rng, &mut bench, 0x050, 0);
        (rng, bench)
    }

    #[test]
    fn requests_are_answered_one_after_the_other() {
        let (mut rng, mut bench) = with_requests();
        assert_eq!(bench.effects, [Effect::WantEntropy(32)]);
        assert_eq!(rng.wanted_bytes(), 32);
        rng.deliver(&[7; 40], &mut bench.ctx());
        assert_eq!(driver::last_used(&bench, 0), (1, 0, 32));
        assert_ne!(bench.irq.levels() & 1 << 10, 0);
        assert_eq!(bench.effects[1..], [Effect::WantEntropy(5)]);
        rng.deliver(&[9; 2], &mut bench.ctx());
        assert_eq!(driver::last_used(&bench, 0), (2, 1, 2), "partly filled");
        assert_eq!(rng.wanted_bytes(), 0);
        let first: [u8; 3] = bench.memory.read_obj(GuestAddress(0x8100)).expect("inside");
        assert_eq!(first, [9, 9, 0]);
    }

    #[test]
    fn a_request_is_bounded() {
        let (mut rng, mut bench) = (VirtioMmio::<Rng>::fresh(), Bench::new());
        driver::probe(&mut rng, &mut bench);
        driver::describe(&bench, 0, 0, (0x4000, 0xc000, WRITE, 0));
        driver::offer(&bench, 0, 0);
        driver::write(&mut rng, &mut bench, 0x050, 0);
        assert_eq!(bench.effects, [Effect::WantEntropy(REQUEST_BYTES_MAX)]);
    }

    #[test]
    fn unasked_bytes_and_reset_requests_go_nowhere() {
        let (mut rng, mut bench) = with_requests();
        driver::write(&mut rng, &mut bench, 0x070, 0);
        let before = bench.memory_bytes();
        rng.deliver(&[1; 32], &mut bench.ctx());
        assert!(bench.memory_bytes() == before);
    }

    #[test]
    fn a_readable_or_rewritten_request_breaks_the_device() {
        for rewritten in [
            (0x8000, 32, 0, 0),
            (0x8000, 32, WRITE | NEXT, 0),
            (1 << 40, 9, WRITE, 0),
        ] {
            let (mut rng, mut bench) = with_requests();
            driver::describe(&bench, 0, 0, rewritten);
            driver::offer(&bench, 0, 0);
            rng.deliver(&[1; 32], &mut bench.ctx());
            rng.deliver(&[1; 5], &mut bench.ctx());
            let status = driver::read(&mut rng, &mut bench, 0x070);
            assert_ne!(status & NEEDS_RESET, 0, "{rewritten:?}");
            assert_eq!(rng.misuse().bad_chain, 1);
        }
    }
}
