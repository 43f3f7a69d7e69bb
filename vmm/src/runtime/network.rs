//! The guest's network card on the host: frames in from the TAP, frames out when released.
//!
//! A bridge floods what it knows no port for to all of them, the guest's TAP among them. Where the logging channel
//! crosses that bridge, every frame of the log would then become a record of the log: so a frame for another
//! station goes no further than here, unless the guest is to have it.
//!
//! A TAP that takes no more frames loses them, as a full switch port would; the guest's protocols
//! cope. So it is with what the fence refuses. All losses are counted.

use super::tap_fence::{Pass, TapFence};
use crate::backend::announce;
use crate::backend::tap::Tap;
use crate::config;
use logging_channel::host_time::HostTime;
use std::net::Ipv4Addr;
use tokio::io::unix::AsyncFd;

/// Longest frame read: an Ethernet frame of 64 KiB.
const FRAME_BYTES_MAX: usize = logging_channel::record::limits::PACKET_BYTES_MAX;

/// The guest's network.
pub(super) struct Network {
    tap: Option<AsyncFd<Tap>>,
    fence: TapFence,
    /// Of what is being carried out.
    pass: Pass,
    mac: [u8; 6],
    addresses: Vec<Ipv4Addr>,
    /// Whether frames for others are for the guest, too.
    promiscuous: bool,
    buffer: Vec<u8>,
    /// Whether it was said that frames for others are left out.
    said_strange: bool,
    /// Frames that the TAP did not take.
    pub(super) transmit_lost: u64,
    /// Frames that the fence refused.
    pub(super) transmit_refused: u64,
}

impl Network {
    /// The network of a guest with `mac` on `tap`, or no network at all. The `config` has
    /// the guest's addresses, as far as known, for a gratuitous ARP each beside the RARP. Nothing leaves before
    /// [`Self::raise`].
    ///
    /// # Errors
    /// When the TAP cannot be watched.
    pub(super) fn new(
        tap: Option<Tap>,
        mac: [u8; 6],
        config: Option<&config::Network>,
        fence: TapFence,
    ) -> std::io::Result<Self> {
        let tap = tap.map(Tap::watch).transpose()?;
        Ok(Self {
            tap,
            fence,
            pass: Pass::default(),
            mac,
            addresses: config.map_or_else(Vec::new, |config| config.announce.clone()),
            promiscuous: config.is_some_and(|config| config.promiscuous),
            buffer: vec![0; FRAME_BYTES_MAX],
            said_strange: false,
            transmit_lost: 0,
            transmit_refused: 0,
        })
    }

    /// Waits for frames and takes up to `max`; those that are not for the guest are left out.
    pub(super) async fn receive(&mut self, max: usize) -> Vec<Vec<u8>> {
        let Some(tap) = &self.tap else {
            return std::future::pending().await;
        };
        let mut frames = Vec::new();
        let Ok(mut ready) = tap.readable().await else {
            return std::future::pending().await;
        };
        for _ in 0..max {
            match tap.get_ref().receive(&mut self.buffer) {
                Ok(Some(length)) => {
                    let frame = &self.buffer[..length];
                    if self.promiscuous || is_for(self.mac, frame) {
                        frames.push(frame.to_vec());
                    } else if !std::mem::replace(&mut self.said_strange, true) {
                        tracing::info!("frames for other stations are not given to the guest");
                    }
                }
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

    /// The node, which holds `generation`, decided at `now` what is carried out next.
    pub(super) fn decided(&mut self, generation: u64, now: HostTime) {
        self.pass = Pass {
            generation,
            decided: now,
        };
    }

    /// The guest lives here under `generation`.
    pub(super) fn raise(&mut self, generation: u64) {
        self.fence.raise(generation);
    }

    /// The guest lives here no more: the TAP is closed, for good.
    pub(super) fn seal(&mut self) {
        self.fence.seal();
        self.tap = None;
    }

    /// Sends one frame, if the fence lets it pass at `now`.
    pub(super) fn transmit(&mut self, frame: &[u8], now: HostTime) {
        let Some(tap) = &self.tap else { return };
        if let Err(refusal) = self.fence.admit(self.pass, now) {
            self.transmit_refused += 1;
            if self.transmit_refused == 1 {
                tracing::warn!(?refusal, pass = ?self.pass, "the TAP's fence keeps a frame back");
            }
            return;
        }
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
    pub(super) fn announce(&mut self, now: HostTime) {
        self.transmit(&announce::rarp(self.mac), now);
        for address in self.addresses.clone() {
            let arp = announce::gratuitous_arp(self.mac, address);
            self.transmit(&arp, now);
        }
    }
}

/// Whether a station with the address `mac` takes a frame: it is for it, or for a group (IEEE 802-2014, 8.2.2: the
/// first bit on the wire).
fn is_for(mac: [u8; 6], frame: &[u8]) -> bool {
    frame
        .first_chunk::<6>()
        .is_some_and(|to| *to == mac || to[0] & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_another_station_is_not_for_the_guest() {
        let mac = [2, 0, 0, 0, 0, 1];
        let to = |address: [u8; 6]| [&address[..], &[2, 0, 0, 0, 0, 9, 8, 0, 1, 2, 3]].concat();
        assert!(is_for(mac, &to(mac)));
        assert!(is_for(mac, &to([0xff; 6])));
        assert!(is_for(mac, &to([0x33, 0x33, 0, 0, 0, 1])));
        assert!(!is_for(mac, &to([2, 0, 0, 0, 0, 2])));
        assert!(!is_for(mac, &mac[..5]));
    }
}
