//! The guest's network card on the host: frames in from the TAP, frames out when released.
//!
//! A TAP that takes no more frames loses them, as a full switch port would; the guest's protocols
//! cope. Both losses are counted.

use crate::backend::announce;
use crate::backend::tap::Tap;
use std::net::Ipv4Addr;
use tokio::io::unix::AsyncFd;

/// Longest frame read: an Ethernet frame of 64 KiB.
const FRAME_BYTES_MAX: usize = logging_channel::record::limits::PACKET_BYTES_MAX;

/// The guest's network.
pub(super) struct Network {
    tap: Option<AsyncFd<Tap>>,
    mac: [u8; 6],
    addresses: Vec<Ipv4Addr>,
    buffer: Vec<u8>,
    /// Frames that the TAP did not take.
    pub(super) transmit_lost: u64,
}

impl Network {
    /// The network of a guest with `mac` on `tap`, or no network at all. `addresses` are
    /// the guest's, as far as known, for a gratuitous ARP each beside the RARP.
    ///
    /// # Errors
    /// When the TAP cannot be watched.
    pub(super) fn new(
        tap: Option<Tap>,
        mac: [u8; 6],
        addresses: Vec<Ipv4Addr>,
    ) -> std::io::Result<Self> {
        let tap = tap.map(Tap::watch).transpose()?;
        Ok(Self {
            tap,
            mac,
            addresses,
            buffer: vec![0; FRAME_BYTES_MAX],
            transmit_lost: 0,
        })
    }

    /// Waits for frames and takes up to `max`.
    pub(super) async fn receive(&mut self, max: usize) -> Vec<Vec<u8>> {
        let Some(tap) = &self.tap else {
            return std::future::pending().await;
        };
        let mut frames = Vec::new();
        let Ok(mut ready) = tap.readable().await else {
            return std::future::pending().await;
        };
        while frames.len() < max {
            match tap.get_ref().receive(&mut self.buffer) {
                Ok(Some(length)) => frames.push(self.buffer[..length].to_vec()),
                Ok(None) => {
                    ready.clear_ready();
                    break;
                }
                Err(error) => {
                    // Such as the interface being down: nothing to read until it is up again.
                    tracing::debug!(%error, "TAP read failed");
                    ready.clear_ready();
                    break;
                }
            }
        }
        frames
    }

    /// Sends one frame.
    pub(super) fn transmit(&mut self, frame: &[u8]) {
        let Some(tap) = &self.tap else { return };
        match tap.get_ref().send(frame) {
            Ok(true) => {}
            Ok(false) => self.transmit_lost += 1,
            Err(error) => {
                self.transmit_lost += 1;
                tracing::debug!(%error, "frame lost at the TAP");
            }
        }
    }

    /// Tells switches, and hosts that know the guest's address, where the guest is now.
    pub(super) fn announce(&mut self) {
        self.transmit(&announce::rarp(self.mac));
        for address in self.addresses.clone() {
            self.transmit(&announce::gratuitous_arp(self.mac, address));
        }
    }
}
