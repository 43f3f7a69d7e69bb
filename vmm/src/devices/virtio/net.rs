//! Network device (virtio 1.2 section 5.1): one pair of queues, no offloads.
//!
//! Frames leave as [`Effect::Transmit`] when the driver notifies the transmit queue, which is then
//! drained. Frames come in through [`VirtioMmio::receive`], which only the recorder or the replayer calls.
//! The 12-byte header is zero in both directions but for `num_buffers`.
//!
//! Left out: checksum and segmentation offload, mergeable buffers, control queue, multiqueue.

#![forbid(unsafe_code)]

use super::mmio::VirtioMmio;
use super::ring::RingFault;
use super::transport::Transport;
use super::{Function, chain::Chain};
use crate::devices::ram::GuestRam;
use crate::devices::{DeviceContext, Effect, RestoreError, count};
use logging_channel::record::limits::PACKET_BYTES_MAX;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP};

/// Queue the driver puts empty buffers on.
pub const RECEIVE_QUEUE: usize = 0;
/// Queue the driver puts frames on.
pub const TRANSMIT_QUEUE: usize = 1;
/// Largest size of each queue.
pub const QUEUE_SIZE_MAX: u16 = 256;

/// Length of `virtio_net_hdr` in virtio 1.
pub const HEADER_BYTES: usize = 12;
/// An Ethernet header without payload.
pub const FRAME_BYTES_MIN: usize = 14;

/// One buffer: the frame is never spread over several.
const RECEIVE_HEADER: [u8; HEADER_BYTES] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// A network device's function.
#[derive(Debug)]
pub struct Net {
    device: u8,
    config: [u8; 8],
}

impl Net {
    /// Network device number `device` with address `mac` and its link up.
    #[must_use]
    pub fn new(device: u8, mac: [u8; 6]) -> Self {
        let [m0, m1, m2, m3, m4, m5] = mac;
        let [s0, s1] = (VIRTIO_NET_S_LINK_UP as u16).to_le_bytes();
        Self {
            device,
            config: [m0, m1, m2, m3, m4, m5, s0, s1],
        }
    }

    fn transmit(
        &self,
        chain: &Chain,
        transport: &mut Transport,
        ctx: &mut DeviceContext<'_>,
    ) -> Result<(), RingFault> {
        if chain.writable_bytes() != 0 {
            return Err(RingFault::Chain);
        }
        let lengths =
            (HEADER_BYTES + FRAME_BYTES_MIN) as u64..=(HEADER_BYTES + PACKET_BYTES_MAX) as u64;
        if lengths.contains(&chain.readable_bytes()) {
            let mut bytes = chain.read(ctx.memory, HEADER_BYTES + PACKET_BYTES_MAX)?;
            bytes.drain(..HEADER_BYTES);
            ctx.effects.push(Effect::Transmit {
                device: self.device,
                bytes,
            });
        } else {
            count(&mut transport.misuse_mut().bad_frame, 1);
        }
        transport
            .ring_mut(TRANSMIT_QUEUE)
            .add_used(chain.head, 0, ctx.memory)
    }

    /// Sends everything on the transmit queue. The driver is stopped meanwhile, so that there are at
    /// most as many chains as the queue has descriptors.
    fn drain(
        &self,
        transport: &mut Transport,
        ctx: &mut DeviceContext<'_>,
    ) -> Result<(), RingFault> {
        let mut any = false;
        for _ in 0..QUEUE_SIZE_MAX {
            let Some(chain) = transport.ring_mut(TRANSMIT_QUEUE).pop(ctx.memory)? else {
                break;
            };
            self.transmit(&chain, transport, ctx)?;
            any = true;
        }
        if any {
            transport.interrupt_for(TRANSMIT_QUEUE, ctx)?;
        }
        Ok(())
    }
}

impl Function for Net {
    type State = ();

    fn name(&self) -> &'static str {
        "net"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE_MAX, QUEUE_SIZE_MAX]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn notify(&mut self, queue: usize, transport: &mut Transport, ctx: &mut DeviceContext<'_>) {
        // New receive buffers need nothing done: the next frame finds them.
        if queue == TRANSMIT_QUEUE
            && let Err(fault) = self.drain(transport, ctx)
        {
            transport.fail(fault, ctx);
        }
    }

    fn reset(&mut self) {}

    fn save(&self) {}

    fn restore(&mut self, (): &()) -> Result<(), RestoreError> {
        Ok(())
    }
}

impl VirtioMmio<Net> {
    /// False while the driver is up but has offered no buffer: the frame had better wait. True
    /// otherwise, also when [`VirtioMmio::receive`] will drop the frame because nobody drives the
    /// device, as a network card would: what waits behind the frame must not wait for ever.
    #[must_use]
    pub fn can_receive(&self, memory: &GuestRam) -> bool {
        let ring = self.transport.ring(RECEIVE_QUEUE);
        let driven = self.transport.is_live() && ring.is_ready();
        !driven || !matches!(ring.front(memory), Ok(None))
    }

    /// A frame arrives. Without a buffer that holds it, it is dropped and counted.
    pub fn receive(&mut self, frame: &[u8], ctx: &mut DeviceContext<'_>) {
        if !self.transport.is_live() {
            count(&mut self.transport.misuse_mut().dropped_receive, 1);
        } else if let Err(fault) = self.deliver_frame(frame, ctx) {
            self.transport.fail(fault, ctx);
        }
    }

    fn deliver_frame(
        &mut self,
        frame: &[u8],
        ctx: &mut DeviceContext<'_>,
    ) -> Result<(), RingFault> {
        let needed = (HEADER_BYTES + frame.len()) as u64;
        let ring = self.transport.ring_mut(RECEIVE_QUEUE);
        match ring.front(ctx.memory)? {
            Some(chain) if chain.readable_bytes() != 0 => return Err(RingFault::Chain),
            Some(chain) if chain.writable_bytes() >= needed => {}
            _ => {
                count(&mut self.transport.misuse_mut().dropped_receive, 1);
                return Ok(());
            }
        }
        let Some(chain) = ring.pop(ctx.memory)? else {
            return Ok(());
        };
        let bytes = [&RECEIVE_HEADER, frame].concat();
        let written = chain.write(ctx.memory, &bytes)?;
        ring.add_used(chain.head, written, ctx.memory)?;
        self.transport.interrupt_for(RECEIVE_QUEUE, ctx)
    }
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
