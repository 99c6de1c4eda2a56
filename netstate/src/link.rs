//! Links: what we create and what we read back.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use crate::Netns;

/// An interface name (at most 15 bytes, the kernel's IFNAMSIZ), filled up with zeros: there is one in most keys.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LinkName([u8; LinkName::MAX]);

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A network device, as wanted and as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What the device is, with the parameters that belong to its kind.
    pub kind: LinkKind,
    /// Always explicit where the device has one, which tunnels have not: udev would change an implicit one after the fact.
    pub mac: Option<Mac>,
    /// In bytes, without the Ethernet header.
    pub mtu: u32,
    /// `IFLA_GROUP`; 0 is the kernel's default.
    pub group: u32,
    /// Administratively up.
    pub up: bool,
}

/// The kinds of device we make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The host end of a pod's veth pair. Creating it creates the other end too; the kernel door keeps `peer` and
    /// `peer_name` in the device's alias, because the kernel gives neither back.
    Veth {
        /// Where the other end is.
        peer: Netns,
        /// Its name there.
        peer_name: LinkName,
    },
    /// The pod's end: it comes and goes with the host end, and only its attributes are set by themselves.
    VethPeer,
    /// A VXLAN device. Every neighbour and FDB entry that is wanted is ours, also where the device learns others.
    Vxlan(VxlanParams),
    /// IPv4 in IPv4 (RFC 2003), to the next hop of each route.
    Ipip {
        /// Source address of outer packets, and the only one at which they are taken.
        local: Ipv4Addr,
    },
    /// IPv6 in IPv4 (RFC 4213), to the IPv4-compatible next hop of each route. The kernel sends outer packets the way that the
    /// one before went, wherever they are for: next hops on a link and behind routers each want a device of their own.
    Sit {
        /// As for [`LinkKind::Ipip`].
        local: Ipv4Addr,
        /// The link by which outer packets leave; none: whichever they are routed by.
        on: Option<LinkName>,
    },
    /// Both families in IPv6 (RFC 2473), by the outer addresses that each route carries. The kernel has one a namespace.
    Ip6Tnl,
    /// A device whose packets an engine carries. It stays when nobody has it open.
    Tun {
        /// What it is for, in the words of who wants it; the kernel door keeps it in the device's alias.
        label: Arc<str>,
    },
    /// A WireGuard device; its key, port and peers are objects of their own.
    Wireguard {
        /// As for [`LinkKind::Tun`].
        label: Arc<str>,
    },
    /// A device of IPsec; its address, key and peers are objects of their own.
    Xfrm {
        /// As for [`LinkKind::Tun`].
        label: Arc<str>,
    },
    /// A bridge, for adopting what other systems left behind.
    Bridge,
}

/// What identifies a VXLAN device on the wire. All of it but `local` and `learning` is fixed at creation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VxlanParams {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Source address of outer packets; its family is the underlay's family.
    pub local: IpAddr,
    /// Learn remote addresses from traffic.
    pub learning: bool,
    /// Carry the group policy extension.
    pub gbp: bool,
}

/// A hash of a text that is the same on every node, after every restart and in every build: what names and MACs of ours
/// are made of.
pub fn stable_hash(text: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    text.hash(&mut hasher);
    hasher.finish()
}

// === impl LinkName ===

impl LinkName {
    /// Longest name the kernel takes, in bytes.
    pub const MAX: usize = 15;

    /// Checks what the kernel would: 1 to 15 bytes, no `/`, `:` or white space, not `.` or `..`. Nor `%`: of that the
    /// kernel would make a name of its own.
    pub fn new(name: &str) -> Option<LinkName> {
        let fits = (1..=Self::MAX).contains(&name.len());
        let clean = !name.bytes().any(|b| matches!(b, b'/' | b':' | b'%' | 0x0b | 0) || b.is_ascii_whitespace());
        (fits && clean && name != "." && name != "..").then(|| LinkName::filled(name))
    }

    /// `prefix` and as many hex digits of `hash` as fit into eleven: the name of a link that we make.
    pub fn hashed(prefix: &str, hash: u64) -> LinkName {
        LinkName::filled(&format!("{prefix}{:011x}", hash >> 20))
    }

    /// The first of all names in order; no link has it.
    pub(crate) const FIRST: LinkName = LinkName([0; LinkName::MAX]);

    fn filled(name: &str) -> LinkName {
        let mut bytes = [0; LinkName::MAX];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        LinkName(bytes)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(LinkName::MAX);
        std::str::from_utf8(&self.0[..end]).expect("made of a whole str, which holds no zero")
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl From<LinkName> for String {
    fn from(name: LinkName) -> String {
        name.as_str().to_owned()
    }
}

impl TryFrom<String> for LinkName {
    type Error = String;

    fn try_from(name: String) -> Result<LinkName, String> {
        LinkName::new(&name).ok_or_else(|| format!("'{name}' is not a name that the kernel gives an interface"))
    }
}

// === impl Mac ===

impl Mac {
    /// A locally administered unicast address that depends on `hash` alone, so that it is the same after every restart.
    pub fn stable(hash: u64) -> Mac {
        let [a, b, c, d, e, f, ..] = hash.to_be_bytes();
        Mac([(a & 0xfe) | 0x02, b, c, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::str::FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let wrong = || format!("'{text}' is not a MAC address; write six hex pairs, as in 02:00:5e:10:00:01");
        let octets: Vec<u8> = text
            .split(':')
            .map(|pair| if pair.len() == 2 { u8::from_str_radix(pair, 16).map_err(|_| wrong()) } else { Err(wrong()) })
            .collect::<Result<_, _>>()?;
        octets.try_into().map(Mac).map_err(|_| wrong())
    }
}
