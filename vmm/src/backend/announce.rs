//! Frames that tell switches and neighbours where the guest's MAC address is now.
//!
//! After going live the guest's MAC sits behind another port of the network. A RARP request from
//! the guest's MAC (what QEMU sends after migration) makes switches relearn it without knowing any
//! IP address; a gratuitous ARP also refreshes neighbours' caches and is sent when the address is
//! configured. RFC 903, RFC 826, RFC 5227 section 3 (announcement: an ARP request with sender and
//! target address equal).
//!
//! Both frames are written as the guest would have sent them, so nobody answers to the host.

#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

/// A MAC address.
pub type Mac = [u8; 6];

/// Length of each frame: the Ethernet minimum without checksum.
pub const FRAME_BYTES: usize = 60;

const BROADCAST: Mac = [0xff; 6];
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
/// Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: u16 = 1;
const RARP_REQUEST: u16 = 3;

/// A RARP request "who am I" from `mac`.
#[must_use]
pub fn rarp(mac: Mac) -> [u8; FRAME_BYTES] {
    let nobody = Ipv4Addr::UNSPECIFIED;
    frame(ETHERTYPE_RARP, RARP_REQUEST, mac, nobody, mac, nobody)
}

/// An ARP announcement: `address` is at `mac`.
#[must_use]
pub fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> [u8; FRAME_BYTES] {
    frame(ETHERTYPE_ARP, ARP_REQUEST, mac, address, [0; 6], address)
}

/// All frames to send when the guest with `mac` goes live here.
#[must_use]
pub fn frames(mac: Mac, address: Option<Ipv4Addr>) -> Vec<[u8; FRAME_BYTES]> {
    let arp = address.map(|address| gratuitous_arp(mac, address));
    std::iter::once(rarp(mac)).chain(arp).collect()
}

fn frame(
    ethertype: u16,
    operation: u16,
    sender: Mac,
    sender_address: Ipv4Addr,
    target: Mac,
    target_address: Ipv4Addr,
) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&BROADCAST);
    put(&sender);
    put(&ethertype.to_be_bytes());
    put(&ETHERNET_IPV4);
    put(&operation.to_be_bytes());
    put(&sender);
    put(&sender_address.octets());
    put(&target);
    put(&target_address.octets());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [0x52, 0x54, 0, 1, 2, 3];

    #[test]
    fn rarp_is_what_switches_expect() {
        let frame = rarp(MAC);
        assert_eq!(frame[..6], BROADCAST);
        assert_eq!(frame[6..12], MAC);
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(frame[22..28], MAC);
        assert_eq!(frame[28..32], [0; 4]);
        assert_eq!(frame[32..38], MAC);
        assert_eq!(frame[38..], [0; 22]);
    }

    #[test]
    fn announcement_names_the_address_as_sender_and_target() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(10, 0, 0, 7));
        assert_eq!(frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[28..32], [10, 0, 0, 7]);
        assert_eq!(frame[32..38], [0; 6]);
        assert_eq!(frame[38..42], [10, 0, 0, 7]);
    }

    #[test]
    fn the_arp_is_sent_only_when_the_address_is_known() {
        assert_eq!(frames(MAC, None), [rarp(MAC)]);
        assert_eq!(frames(MAC, Some(Ipv4Addr::LOCALHOST)).len(), 2);
    }
}
