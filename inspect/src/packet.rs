//! An Ethernet frame in words: addresses, ports, TCP's numbers, in one line.
//!
//! Decoding is etherparse's, which never panics and stops where a frame ends too early; what could be
//! read until then is shown. The guest and its network wrote these bytes, so nothing is believed.
//! Left out: contents above TCP and UDP (`log export --pcapng` and Wireshark have them).

#![forbid(unsafe_code)]

use crate::digits;
use crate::repeats::Repeats;
use etherparse::{LaxNetSlice, LaxSlicedPacket, LinkSlice, TransportSlice, icmpv4, icmpv6};
use serde::Serialize;
use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is above Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP for IPv4.
    Icmp,
    /// ICMP for IPv6.
    Icmp6,
    /// Address resolution.
    Arp,
    /// Another protocol in IPv4.
    Ip4,
    /// Another protocol in IPv6.
    Ip6,
    /// None of these.
    Other,
}

impl Protocol {
    /// Every protocol that has a name of its own.
    pub const ALL: [Self; 8] = [
        Self::Tcp,
        Self::Udp,
        Self::Icmp,
        Self::Icmp6,
        Self::Arp,
        Self::Ip4,
        Self::Ip6,
        Self::Other,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Icmp6 => "icmp6",
            Self::Arp => "arp",
            Self::Ip4 => "ip4",
            Self::Ip6 => "ip6",
            Self::Other => "other",
        }
    }
}

/// TCP's part of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tcp {
    /// Flags, as `SYN`, `SYN,ACK`.
    pub flags: Cow<'static, str>,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number; meaningful with the flag `ACK`.
    pub ack: u32,
    /// Window as sent, not scaled.
    pub window: u16,
}

/// A decoded frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Packet {
    /// Source and destination Ethernet addresses; absent in a frame that is too short for them.
    #[serde(skip)]
    pub mac: Option<([u8; 6], [u8; 6])>,
    /// What it carries.
    pub proto: Protocol,
    /// Source address of IP, or sender of ARP.
    pub src: Option<IpAddr>,
    /// Destination address of IP, or target of ARP.
    pub dst: Option<IpAddr>,
    /// Source port of TCP or UDP.
    pub src_port: Option<u16>,
    /// Destination port of TCP or UDP.
    pub dst_port: Option<u16>,
    /// TCP's part.
    pub tcp: Option<Tcp>,
    /// Bytes above TCP, UDP or ICMP; above IP when it is none of these.
    pub payload: usize,
    /// In a few words, what has no field above.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub info: String,
    /// The frame ends before what its headers promise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

impl Packet {
    /// Decodes an Ethernet frame, as far as it can be decoded.
    #[must_use]
    pub fn decode(frame: &[u8]) -> Self {
        let mut packet = Self {
            mac: None,
            proto: Protocol::Other,
            src: None,
            dst: None,
            src_port: None,
            dst_port: None,
            tcp: None,
            payload: 0,
            info: String::new(),
            cut: false,
        };
        let Ok(sliced) = LaxSlicedPacket::from_ethernet(frame) else {
            packet.info = "too short for Ethernet".into();
            packet.cut = true;
            return packet;
        };
        packet.cut = sliced.stop_err.is_some();
        if let Some(LinkSlice::Ethernet2(link)) = &sliced.link {
            packet.mac = Some((link.source(), link.destination()));
            packet.payload = link.payload().payload.len();
            if sliced.net.is_none() {
                packet.info = format!("type {:04x}", link.ether_type().0);
            }
        }
        if let Some(net) = &sliced.net {
            packet.take_net(net, sliced.transport.is_some());
        }
        if let Some(transport) = &sliced.transport {
            packet.take_transport(transport);
        }
        packet
    }

    /// `transport` when what is above follows, and says more.
    fn take_net(&mut self, net: &LaxNetSlice<'_>, transport: bool) {
        self.info.clear();
        let number = match net {
            LaxNetSlice::Ipv4(ip) => {
                let header = ip.header();
                self.proto = Protocol::Ip4;
                self.src = Some(header.source_addr().into());
                self.dst = Some(header.destination_addr().into());
                if ip.is_payload_fragmented() {
                    let offset = header.fragments_offset().byte_offset();
                    self.info = format!("fragment at {offset} of {:04x} ", header.identification());
                }
                ip.payload_ip_number()
            }
            LaxNetSlice::Ipv6(ip) => {
                let header = ip.header();
                self.proto = Protocol::Ip6;
                self.src = Some(header.source_addr().into());
                self.dst = Some(header.destination_addr().into());
                ip.payload().ip_number
            }
            LaxNetSlice::Arp(arp) => return self.take_arp(arp),
        };
        self.payload = net
            .ip_payload_ref()
            .map_or(0, |payload| payload.payload.len());
        if !transport {
            self.info += &format!("protocol {}", number.0);
        }
    }

    fn take_arp(&mut self, arp: &etherparse::ArpPacketSlice<'_>) {
        self.proto = Protocol::Arp;
        self.payload = 0;
        self.src = ip_of(arp.sender_protocol_addr());
        self.dst = ip_of(arp.target_protocol_addr());
        let name =
            |address: Option<IpAddr>| address.map_or_else(|| "?".into(), |ip| ip.to_string());
        let (sender, target) = (name(self.src), name(self.dst));
        self.info = match arp.operation().0 {
            1 if sender == target => format!("announces {sender}"),
            1 => format!("who has {target}? tell {sender}"),
            2 => format!("{sender} is at {}", mac_text(arp.sender_hw_addr())),
            other => format!("operation {other}"),
        };
    }

    fn take_transport(&mut self, transport: &TransportSlice<'_>) {
        self.info.clear();
        match transport {
            TransportSlice::Tcp(tcp) => {
                self.proto = Protocol::Tcp;
                self.src_port = Some(tcp.source_port());
                self.dst_port = Some(tcp.destination_port());
                self.payload = tcp.payload().len();
                self.tcp = Some(Tcp {
                    flags: flags(tcp),
                    seq: tcp.sequence_number(),
                    ack: tcp.acknowledgment_number(),
                    window: tcp.window_size(),
                });
            }
            TransportSlice::Udp(udp) => {
                self.proto = Protocol::Udp;
                self.src_port = Some(udp.source_port());
                self.dst_port = Some(udp.destination_port());
                self.payload = udp.payload().len();
            }
            TransportSlice::Icmpv4(icmp) => {
                self.proto = Protocol::Icmp;
                self.payload = icmp.payload().len();
                self.info = icmp4(icmp);
            }
            TransportSlice::Icmpv6(icmp) => {
                self.proto = Protocol::Icmp6;
                self.payload = icmp.payload().len();
                self.info = icmp6(icmp);
            }
            TransportSlice::Igmp(_) => self.info = "igmp".into(),
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.push(&mut Repeats::default(), &mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

impl Packet {
    /// Appends it in one line to `out`.
    pub(crate) fn push(&self, repeats: &mut Repeats, out: &mut Vec<u8>) {
        match (self.src, self.dst, self.mac) {
            (Some(src), Some(dst), _) if self.proto != Protocol::Arp => {
                let name = self.proto.name();
                let flow = (src, self.src_port, dst, self.dst_port, name);
                repeats.flow(flow, out, |text| {
                    push_endpoint(text, src, self.src_port);
                    text.extend_from_slice(b" > ");
                    push_endpoint(text, dst, self.dst_port);
                    text.push(b' ');
                    text.extend_from_slice(name.as_bytes());
                });
            }
            (_, _, Some((src, dst))) => {
                out.extend_from_slice(mac_text(&src).as_bytes());
                out.extend_from_slice(b" > ");
                out.extend_from_slice(mac_text(&dst).as_bytes());
                if self.proto == Protocol::Arp {
                    out.extend_from_slice(b" arp");
                }
            }
            _ => {}
        }
        if let Some(tcp) = &self.tcp {
            out.push(b' ');
            out.extend_from_slice(tcp.flags.as_bytes());
            push_number(out, " seq ", tcp.seq.into());
            if tcp.flags.contains("ACK") {
                push_number(out, " ack ", tcp.ack.into());
            }
            push_number(out, " win ", tcp.window.into());
        }
        if !self.info.is_empty() {
            if self.mac.is_some() {
                out.push(b' ');
            }
            out.extend_from_slice(self.info.as_bytes());
        }
        if self.mac.is_some() && self.proto != Protocol::Arp {
            push_number(out, " len ", self.payload as u64);
        }
        if self.cut && self.mac.is_some() {
            out.extend_from_slice(b" (cut short)");
        }
    }
}

#[inline]
fn push_number(out: &mut Vec<u8>, name: &str, number: u64) {
    out.extend_from_slice(name.as_bytes());
    digits::push(out, number);
}

fn push_endpoint(out: &mut Vec<u8>, ip: IpAddr, port: Option<u16>) {
    match ip {
        IpAddr::V4(ip) => {
            let [first, rest @ ..] = ip.octets();
            digits::push(out, first.into());
            for byte in rest {
                out.push(b'.');
                digits::push(out, byte.into());
            }
        }
        // A Vec takes everything.
        IpAddr::V6(ip) if port.is_some() => drop(write!(out, "[{ip}]")),
        IpAddr::V6(ip) => drop(write!(out, "{ip}")),
    }
    if let Some(port) = port {
        push_number(out, ":", port.into());
    }
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(four).into());
    }
    let sixteen = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(sixteen).into())
}

fn flags(tcp: &etherparse::TcpSlice<'_>) -> Cow<'static, str> {
    let seldom = tcp.fin() || tcp.rst() || tcp.urg() || tcp.ece() || tcp.cwr();
    match (tcp.syn(), tcp.psh(), tcp.ack()) {
        (false, false, true) if !seldom => "ACK".into(),
        (false, true, true) if !seldom => "PSH,ACK".into(),
        _ => all_flags(tcp).into(),
    }
}

fn all_flags(tcp: &etherparse::TcpSlice<'_>) -> String {
    let all = [
        (tcp.syn(), "SYN"),
        (tcp.fin(), "FIN"),
        (tcp.rst(), "RST"),
        (tcp.psh(), "PSH"),
        (tcp.urg(), "URG"),
        (tcp.ece(), "ECE"),
        (tcp.cwr(), "CWR"),
        (tcp.ack(), "ACK"),
    ];
    let mut text = String::new();
    for (_, name) in all.into_iter().filter(|(set, _)| *set) {
        if !text.is_empty() {
            text.push(',');
        }
        text += name;
    }
    if text.is_empty() { "-".into() } else { text }
}

fn icmp4(icmp: &etherparse::Icmpv4Slice<'_>) -> String {
    let echo = |word: &str| {
        let [a, b, c, d] = icmp.bytes5to8();
        let (id, seq) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        format!("{word} id {id} seq {seq}")
    };
    match icmp.type_u8() {
        icmpv4::TYPE_ECHO_REQUEST => echo("echo request"),
        icmpv4::TYPE_ECHO_REPLY => echo("echo reply"),
        icmpv4::TYPE_DEST_UNREACH => format!("unreachable, code {}", icmp.code_u8()),
        icmpv4::TYPE_TIME_EXCEEDED => "time exceeded".into(),
        other => format!("type {other} code {}", icmp.code_u8()),
    }
}

fn icmp6(icmp: &etherparse::Icmpv6Slice<'_>) -> String {
    match icmp.type_u8() {
        icmpv6::TYPE_ECHO_REQUEST => "echo request".into(),
        icmpv6::TYPE_ECHO_REPLY => "echo reply".into(),
        icmpv6::TYPE_DST_UNREACH => format!("unreachable, code {}", icmp.code_u8()),
        133 => "router solicitation".into(),
        134 => "router advertisement".into(),
        135 => "neighbour solicitation".into(),
        136 => "neighbour advertisement".into(),
        143 => "multicast listener report".into(),
        other => format!("type {other} code {}", icmp.code_u8()),
    }
}

/// An Ethernet address as people write it.
#[must_use]
pub fn mac_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for (number, byte) in bytes.iter().enumerate() {
        if number > 0 {
            text.push(':');
        }
        let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('?');
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use proptest::prelude::*;

    #[test]
    fn tcp_in_one_line() {
        let packet = Packet::decode(&sample::tcp(4242, 80, b"hello"));
        assert_eq!(
            packet.to_string(),
            "10.0.0.1:4242 > 10.0.0.2:80 tcp PSH,ACK seq 1000 ack 2000 win 512 len 5"
        );
        assert_eq!(packet.proto, Protocol::Tcp);
    }

    #[test]
    fn udp_icmp_and_arp_in_one_line() {
        let udp = Packet::decode(&sample::udp(53, b"question"));
        assert_eq!(udp.to_string(), "10.0.0.1:5353 > 10.0.0.2:53 udp len 8");
        let ping = Packet::decode(&sample::ping());
        assert_eq!(
            ping.to_string(),
            "10.0.0.1 > 10.0.0.2 icmp echo request id 7 seq 1 len 4"
        );
        let arp = Packet::decode(&sample::arp());
        assert_eq!(
            arp.to_string(),
            "02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff arp who has 10.0.0.2? tell 10.0.0.1"
        );
    }

    #[test]
    fn a_cut_frame_says_so() {
        let whole = sample::tcp(4242, 80, b"hello");
        assert_eq!(
            Packet::decode(&whole[..10]).to_string(),
            "too short for Ethernet"
        );
        let cut = Packet::decode(&whole[..40]);
        assert!(cut.cut && cut.to_string().ends_with("(cut short)"), "{cut}");
        assert_eq!(cut.dst, Some(Ipv4Addr::new(10, 0, 0, 2).into()));
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_line(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let text = Packet::decode(&bytes).to_string();
            prop_assert!(!text.contains('\n'));
        }

        #[test]
        fn any_damage_to_a_packet_has_a_line(at in 0usize..59, value: u8) {
            let mut bytes = sample::tcp(1, 2, b"hello");
            bytes[at] = value;
            let _ = Packet::decode(&bytes).to_string();
        }
    }
}
