//! Packets as they are on the wire, made by hand: what a pod sends needs no socket and no kernel that knows the protocol.
//!
//! Every packet carries a tag: its part in the connection and a number that tells it from all others. Checksums are right,
//! or conntrack would not follow the connection. Sequence numbers are the same in every connection: each part is sent as if
//! it were repeated.

use std::net::IpAddr;

/// What is inside an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    Sctp,
    /// Echo, in both families.
    Icmp,
}

/// What a packet is in its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// SYN, INIT, echo request, or a datagram.
    Opening,
    /// SYN and ACK, INIT ACK, echo reply, or a datagram back.
    Answer,
    /// What follows, either way; TCP and UDP only.
    FromClient,
    FromServer,
}

/// A packet, to be sent or seen. Ports of an echo are its identifier (the client's) and nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) kind: Kind,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) part: Part,
    pub(crate) number: u32,
}

const TAG: [u8; 2] = *b"tt";
const TAG_LENGTH: usize = 8;
const CLIENT_SEQUENCE: u32 = 1000;
const SERVER_SEQUENCE: u32 = 5000;
/// SCTP's verification tags, of both ends.
const CLIENT_VTAG: u32 = 7;
const SERVER_VTAG: u32 = 9;
const PARTS: [Part; 4] = [Part::Opening, Part::Answer, Part::FromClient, Part::FromServer];

// === impl Kind ===

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Tcp, Kind::Udp, Kind::Sctp, Kind::Icmp];

    fn protocol(self, v6: bool) -> u8 {
        match self {
            Kind::Tcp => 6,
            Kind::Udp => 17,
            Kind::Sctp => 132,
            Kind::Icmp if v6 => 58,
            Kind::Icmp => 1,
        }
    }

    /// Where the tag is.
    fn header_length(self) -> usize {
        match self {
            Kind::Tcp => 20,
            Kind::Udp | Kind::Icmp => 8,
            // A common header, an INIT chunk, and the head of a parameter that nobody knows.
            Kind::Sctp => 12 + 20 + 4,
        }
    }
}

// === impl Part ===

impl Part {
    pub(crate) fn is_from_client(self) -> bool {
        matches!(self, Part::Opening | Part::FromClient)
    }
}

// === impl Packet ===

impl Packet {
    /// The packet back to whom this one seems to come from.
    pub(crate) fn back(&self, part: Part, number: u32) -> Packet {
        Packet {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            part,
            number,
            ..*self
        }
    }

    /// From the IP header on. The IPv4 header's checksum is the kernel's business.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let inner = self.inner();
        let length = u16::try_from(inner.len()).expect("small");
        let protocol = self.kind.protocol(self.source.is_ipv6());
        let mut bytes = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, 0];
                header.extend((length + 20).to_be_bytes());
                header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(length.to_be_bytes());
                header.extend([protocol, 64]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            _ => panic!("{self:?} is of two families"),
        };
        bytes.extend(inner);
        bytes
    }

    fn inner(&self) -> Vec<u8> {
        let mut bytes = match self.kind {
            Kind::Tcp => self.tcp(),
            Kind::Udp => {
                let length = u16::try_from(8 + TAG_LENGTH).expect("small");
                [self.source_port, self.destination_port, length, 0].map(u16::to_be_bytes).concat()
            }
            Kind::Sctp => self.sctp(),
            Kind::Icmp => {
                let kind = match (self.part.is_from_client(), self.source.is_ipv6()) {
                    (true, false) => 8,
                    (false, false) => 0,
                    (true, true) => 128,
                    (false, true) => 129,
                };
                let identifier =
                    if self.part.is_from_client() { self.source_port } else { self.destination_port }.to_be_bytes();
                vec![kind, 0, 0, 0, identifier[0], identifier[1], 0, 1]
            }
        };
        let part = PARTS.iter().position(|part| *part == self.part).expect("all parts are there");
        bytes.extend(TAG);
        bytes.extend([part as u8, 0]);
        bytes.extend(self.number.to_be_bytes());
        self.sum(&mut bytes);
        bytes
    }

    fn tcp(&self) -> Vec<u8> {
        let (syn, psh, ack) = (2, 8, 16);
        let (sequence, acknowledged, flags) = match self.part {
            Part::Opening => (CLIENT_SEQUENCE, 0, syn),
            Part::Answer => (SERVER_SEQUENCE, CLIENT_SEQUENCE + 1, syn | ack),
            Part::FromClient => (CLIENT_SEQUENCE + 1, SERVER_SEQUENCE + 1, psh | ack),
            Part::FromServer => (SERVER_SEQUENCE + 1, CLIENT_SEQUENCE + 1, psh | ack),
        };
        let mut bytes = [self.source_port, self.destination_port].map(u16::to_be_bytes).concat();
        bytes.extend(u32::to_be_bytes(sequence));
        bytes.extend(u32::to_be_bytes(acknowledged));
        bytes.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes
    }

    fn sctp(&self) -> Vec<u8> {
        let (chunk, to, own) = match self.part {
            Part::Opening => (1, 0, CLIENT_VTAG),
            Part::Answer => (2, CLIENT_VTAG, SERVER_VTAG),
            part => panic!("SCTP connections have no {part:?}"),
        };
        let mut bytes = [self.source_port, self.destination_port].map(u16::to_be_bytes).concat();
        bytes.extend(u32::to_be_bytes(to));
        bytes.extend([0; 4]);
        bytes.extend([chunk, 0, 0, 20 + 4 + TAG_LENGTH as u8]);
        bytes.extend(u32::to_be_bytes(own));
        // Window, streams out and in, first number.
        bytes.extend([0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1]);
        bytes.extend([0xc0, 0x7f, 0, 4 + TAG_LENGTH as u8]);
        bytes
    }

    /// Puts the checksum in.
    fn sum(&self, bytes: &mut [u8]) {
        let v6 = self.source.is_ipv6();
        match self.kind {
            Kind::Sctp => {
                let sum = crc32c(bytes).to_le_bytes();
                bytes[8..12].copy_from_slice(&sum);
            }
            kind => {
                let over_addresses = if kind == Kind::Icmp && !v6 { 0 } else { self.pseudo_header(bytes.len()) };
                let sum = !fold(over_addresses + words(bytes));
                let at = match kind {
                    Kind::Tcp => 16,
                    Kind::Udp => 6,
                    _ => 2,
                };
                // To UDP zero is no checksum, and all ones are the same number.
                let sum = if sum == 0 { 0xffff } else { sum };
                bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            }
        }
    }

    fn pseudo_header(&self, length: usize) -> u32 {
        let address = |address: IpAddr| match address {
            IpAddr::V4(address) => words(&address.octets()),
            IpAddr::V6(address) => words(&address.octets()),
        };
        let protocol = u32::from(self.kind.protocol(self.source.is_ipv6()));
        address(self.source) + address(self.destination) + protocol + u32::try_from(length).expect("small")
    }

    /// Reads what begins with an IP header. None: it is not one of ours.
    pub(crate) fn read(bytes: &[u8]) -> Option<Packet> {
        let (protocol, source, destination, inner) = match bytes.first()? >> 4 {
            4 => {
                let octets = |at: usize| <[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok();
                let header = usize::from(bytes[0] & 15) * 4;
                (*bytes.get(9)?, IpAddr::from(octets(12)?), IpAddr::from(octets(16)?), bytes.get(header..)?)
            }
            6 => {
                let octets = |at: usize| <[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok();
                (*bytes.get(6)?, IpAddr::from(octets(8)?), IpAddr::from(octets(24)?), bytes.get(40..)?)
            }
            _ => return None,
        };
        let kind = Kind::ALL.into_iter().find(|kind| kind.protocol(source.is_ipv6()) == protocol)?;
        Packet::read_inner(kind, source, destination, inner)
    }

    /// Reads what comes after the IP header.
    pub(crate) fn read_inner(kind: Kind, source: IpAddr, destination: IpAddr, bytes: &[u8]) -> Option<Packet> {
        let tag = bytes.get(kind.header_length()..)?;
        if tag.get(..2)? != TAG {
            return None;
        }
        let part = *PARTS.get(usize::from(*tag.get(2)?))?;
        let number = u32::from_be_bytes(tag.get(4..8)?.try_into().ok()?);
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let (source_port, destination_port) = match (kind, part.is_from_client()) {
            (Kind::Icmp, true) => (word(4), 0),
            (Kind::Icmp, false) => (0, word(4)),
            _ => (word(0), word(2)),
        };
        Some(Packet { source, destination, kind, source_port, destination_port, part, number })
    }
}

/// RFC 1071, not folded.
fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}
