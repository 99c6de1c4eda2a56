//! XFRM on the wire (the kernel's include/uapi/linux/xfrm.h): associations and policies that are ours.
//!
//! Invariant: ours are those with our request numbers; others are neither read nor touched. An association of ours is for inner
//! packets of both families, so its selector selects nothing, and the addresses in it hold the public key of the far end
//! instead: that is how the kernel remembers whose it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_XFRM;
use nix::errno::Errno;
use nix::libc;
use tartan_netstate::PublicKey;
use tartan_netstate::claims::{ESP_ANCHOR, ESP_IN, ESP_OUT};

use crate::KernelError;
use crate::channel::{Channel, Message};
use crate::netlink::Refusal;
use crate::nfnetlink::{Attrs, NLM_F_CREATE, NLM_F_DUMP, attr, attrs};

const XFRM_MSG_NEWSA: u16 = 0x10;
const XFRM_MSG_DELSA: u16 = 0x11;
const XFRM_MSG_GETSA: u16 = 0x12;
const XFRM_MSG_DELPOLICY: u16 = 0x14;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_EXPIRE: u16 = 0x18;
const XFRM_MSG_UPDPOLICY: u16 = 0x19;
const XFRM_MSG_FLUSHSA: u16 = 0x1c;
const XFRM_MSG_FLUSHPOLICY: u16 = 0x1d;
/// Groups of notifications: associations that end of themselves, associations, policies.
pub(crate) const GROUPS: [u32; 3] = [2, 3, 4];
const XFRMA_ENCAP: u16 = 4;
const XFRMA_TMPL: u16 = 5;
const XFRMA_ALG_AEAD: u16 = 18;
const XFRMA_REPLAY_ESN_VAL: u16 = 23;
const XFRMA_IF_ID: u16 = 31;
const XFRM_MODE_TUNNEL: u8 = 1;
/// A selector of no family.
const XFRM_STATE_AF_UNSPEC: u8 = 32;
const XFRM_STATE_ESN: u8 = 128;
const XFRM_INF: u64 = u64::MAX;
/// What is wrapped in UDP by RFC 3948.
const UDP_ENCAP_ESPINUDP: u16 = 2;

/// Lengths of the structs, and where in them things are.
const SELECTOR: usize = 56;
const USERSA_INFO: usize = 224;
const USERPOLICY_INFO: usize = 168;
const SA_ID: usize = SELECTOR;
const SA_SADDR: usize = 80;
const SA_LIFETIME: usize = 96;
const SA_REQID: usize = 208;
const SA_FAMILY: usize = 212;
const POLICY_PRIORITY: usize = 152;
const POLICY_DIR: usize = 160;
const TMPL: usize = 64;
const TMPL_SADDR: usize = 28;
const TMPL_REQID: usize = 44;

/// With the salt (RFC 4106 section 8.1).
pub(crate) const KEY_BYTES: usize = 32 + 4;
const ALGORITHM: &[u8] = b"rfc4106(gcm(aes))";
const TAG_BITS: u32 = 128;
/// Packets of an association that may come late, beside others: it has no more than one bit for each.
const REPLAY_WINDOW: u32 = 2048;
/// An association that has sent so many is not used any more (docs/ipsec.md).
const MOST_PACKETS: u64 = 1 << 48;

/// An association, without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sa {
    pub(crate) saddr: IpAddr,
    pub(crate) daddr: IpAddr,
    pub(crate) spi: u32,
    pub(crate) reqid: u32,
    pub(crate) if_id: u32,
    pub(crate) far_end: PublicKey,
    /// UDP port of both ends, if packets are wrapped.
    pub(crate) port: Option<u16>,
    /// The last number that was sent.
    pub(crate) sent: u64,
}

/// Which packets a policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    In,
    Out,
    Forward,
}

/// A policy about a range, which is the far end's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) direction: Direction,
    pub(crate) range: IpNet,
    pub(crate) if_id: u32,
    pub(crate) spi: u32,
    /// Of packets that are sent, from where to where.
    pub(crate) between: Option<(IpAddr, IpAddr)>,
}

/// A socket for them.
pub(crate) struct Xfrm(Channel);

impl Xfrm {
    /// In the network namespace of the calling thread; none where the kernel has no XFRM.
    pub(crate) fn open() -> Result<Option<Xfrm>, KernelError> {
        match Channel::open(NETLINK_XFRM) {
            Err(KernelError::Refused { errno: Errno::EPROTONOSUPPORT, .. }) => Ok(None),
            channel => Ok(Some(Xfrm(channel?))),
        }
    }

    /// See [`Channel::port`].
    pub(crate) fn port(&self) -> u32 {
        self.0.port()
    }

    /// Carries out requests in order. One result each.
    pub(crate) fn batch(&mut self, requests: &[Message]) -> Vec<Result<(), Refusal>> {
        self.0.batch(requests)
    }

    /// All associations of ours.
    pub(crate) fn associations(&mut self) -> Result<Vec<Sa>, KernelError> {
        let all = self.dump(XFRM_MSG_GETSA, "IPsec associations")?;
        Ok(all.iter().filter_map(|answer| decode_sa(answer)).collect())
    }

    /// All policies of ours.
    pub(crate) fn policies(&mut self) -> Result<Vec<Policy>, KernelError> {
        let all = self.dump(XFRM_MSG_GETPOLICY, "IPsec policies")?;
        Ok(all.iter().filter_map(|answer| decode_policy(answer)).collect())
    }

    /// One association, whoever's it is; an error says no more than that there is one.
    pub(crate) fn association(&mut self, daddr: IpAddr, spi: u32) -> Result<Option<Sa>, Refusal> {
        match self.0.ask(&Message { kind: XFRM_MSG_GETSA, flags: 0, payload: sa_id(daddr, spi) }) {
            Ok(answers) => Ok(answers.first().and_then(|answer| decode_sa(answer))),
            Err(Refusal { errno: Errno::ESRCH, .. }) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    fn dump(&mut self, kind: u16, what: &'static str) -> Result<Vec<Vec<u8>>, KernelError> {
        self.0.ask(&Message { kind, flags: NLM_F_DUMP, payload: Vec::new() }).map_err(|refusal| match refusal.errno {
            Errno::EINTR | Errno::ENOBUFS => KernelError::Interrupted(what),
            _ => refusal.doing(format!("read {what}")),
        })
    }
}

// === requests ===

/// Makes an association that goes on after the number that was sent last. Refused if there is one.
pub(crate) fn create_sa(sa: &Sa, key: &[u8; KEY_BYTES]) -> Message {
    let mut info = vec![0; USERSA_INFO];
    info[..32].copy_from_slice(&sa.far_end.0);
    info[SA_ID..SA_ID + 24].copy_from_slice(&sa_id(sa.daddr, sa.spi));
    // In an xfrm_id the protocol comes where the other struct has the family.
    info[SA_ID + 20..SA_ID + 24].copy_from_slice(&[libc::IPPROTO_ESP as u8, 0, 0, 0]);
    put_address(&mut info, SA_SADDR, sa.saddr);
    let lifetimes = [XFRM_INF, XFRM_INF, XFRM_INF, MOST_PACKETS];
    for (at, limit) in lifetimes.into_iter().enumerate() {
        info[SA_LIFETIME + 8 * at..][..8].copy_from_slice(&limit.to_ne_bytes());
    }
    info[SA_REQID..SA_REQID + 4].copy_from_slice(&sa.reqid.to_ne_bytes());
    info[SA_FAMILY..SA_FAMILY + 2].copy_from_slice(&family(sa.daddr).to_ne_bytes());
    info[SA_FAMILY + 2] = XFRM_MODE_TUNNEL;
    info[SA_FAMILY + 4] = XFRM_STATE_AF_UNSPEC | XFRM_STATE_ESN;
    let mut attrs = Attrs::new();
    let mut algorithm = vec![0; 64];
    algorithm[..ALGORITHM.len()].copy_from_slice(ALGORITHM);
    let bits = (8 * KEY_BYTES) as u32;
    attrs.bytes(XFRMA_ALG_AEAD, &[&algorithm, &bits.to_ne_bytes()[..], &TAG_BITS.to_ne_bytes(), key].concat());
    let words = REPLAY_WINDOW / 32;
    let replay = [words, sa.sent as u32, 0, (sa.sent >> 32) as u32, 0, REPLAY_WINDOW];
    let seen = std::iter::repeat_n(0, words as usize);
    let replay: Vec<u8> = replay.into_iter().chain(seen).flat_map(u32::to_ne_bytes).collect();
    attrs.bytes(XFRMA_REPLAY_ESN_VAL, &replay).bytes(XFRMA_IF_ID, &sa.if_id.to_ne_bytes());
    if let Some(port) = sa.port {
        attrs.bytes(XFRMA_ENCAP, &encap_tmpl(port));
    }
    info.extend_from_slice(&attrs.0);
    Message { kind: XFRM_MSG_NEWSA, flags: NLM_F_CREATE, payload: info }
}

pub(crate) fn delete_sa(daddr: IpAddr, spi: u32) -> Message {
    Message { kind: XFRM_MSG_DELSA, flags: 0, payload: sa_id(daddr, spi) }
}

/// Whether a notification is of something that is gone.
pub(crate) fn tells_of_loss(kind: u16) -> bool {
    let losses = [XFRM_MSG_DELSA, XFRM_MSG_DELPOLICY, XFRM_MSG_EXPIRE, XFRM_MSG_FLUSHSA, XFRM_MSG_FLUSHPOLICY];
    losses.contains(&kind)
}

/// Whether a request takes something away.
pub(crate) fn deletes(request: &Message) -> bool {
    [XFRM_MSG_DELSA, XFRM_MSG_DELPOLICY].contains(&request.kind)
}

/// Makes a policy, or puts it in place of the one about the same packets, at once.
pub(crate) fn put_policy(policy: &Policy) -> Message {
    let mut info = vec![0; USERPOLICY_INFO];
    info[..SELECTOR].copy_from_slice(&selector(policy.direction, policy.range));
    for limit in 0..4 {
        info[SELECTOR + 8 * limit..][..8].copy_from_slice(&XFRM_INF.to_ne_bytes());
    }
    // The kernel takes the lowest number, and not the longest prefix, of those that hold a packet.
    let priority = u32::from(policy.range.max_prefix_len() - policy.range.prefix_len());
    info[POLICY_PRIORITY..POLICY_PRIORITY + 4].copy_from_slice(&priority.to_ne_bytes());
    info[POLICY_DIR] = policy.direction.number();
    let mut tmpl = vec![0; TMPL];
    let reqid = if policy.direction == Direction::Out { ESP_OUT } else { ESP_IN };
    let mut family_of = libc::AF_INET as u16;
    if let Some((saddr, daddr)) = policy.between {
        put_address(&mut tmpl, 0, daddr);
        put_address(&mut tmpl, TMPL_SADDR, saddr);
        family_of = family(daddr);
    }
    tmpl[16..20].copy_from_slice(&policy.spi.to_be_bytes());
    tmpl[20] = libc::IPPROTO_ESP as u8;
    tmpl[24..26].copy_from_slice(&family_of.to_ne_bytes());
    tmpl[TMPL_REQID..TMPL_REQID + 4].copy_from_slice(&reqid.to_ne_bytes());
    tmpl[48] = XFRM_MODE_TUNNEL;
    // Whatever algorithm the association has: it is named by its number.
    tmpl[52..].fill(0xff);
    let mut attrs = Attrs::new();
    attrs.bytes(XFRMA_TMPL, &tmpl).bytes(XFRMA_IF_ID, &policy.if_id.to_ne_bytes());
    info.extend_from_slice(&attrs.0);
    Message { kind: XFRM_MSG_UPDPOLICY, flags: NLM_F_CREATE, payload: info }
}

pub(crate) fn delete_policy(direction: Direction, range: IpNet, if_id: u32) -> Message {
    let mut id = selector(direction, range);
    id.extend_from_slice(&[0, 0, 0, 0, direction.number(), 0, 0, 0]);
    let mut attrs = Attrs::new();
    attrs.bytes(XFRMA_IF_ID, &if_id.to_ne_bytes());
    id.extend_from_slice(&attrs.0);
    Message { kind: XFRM_MSG_DELPOLICY, flags: 0, payload: id }
}

fn selector(direction: Direction, range: IpNet) -> Vec<u8> {
    let mut selector = vec![0; SELECTOR];
    let (address, length) = if direction == Direction::Out { (0, 42) } else { (16, 43) };
    put_address(&mut selector, address, range.network());
    selector[40..42].copy_from_slice(&family(range.addr()).to_ne_bytes());
    selector[length] = range.prefix_len();
    selector
}

/// An `xfrm_usersa_id`.
fn sa_id(daddr: IpAddr, spi: u32) -> Vec<u8> {
    let mut id = vec![0; 24];
    put_address(&mut id, 0, daddr);
    id[16..20].copy_from_slice(&spi.to_be_bytes());
    id[20..22].copy_from_slice(&family(daddr).to_ne_bytes());
    id[22] = libc::IPPROTO_ESP as u8;
    id
}

/// An `xfrm_encap_tmpl`: of what kind, both ports, and the address that a transport mode would need.
fn encap_tmpl(port: u16) -> [u8; 24] {
    let mut tmpl = [0; 24];
    tmpl[..2].copy_from_slice(&UDP_ENCAP_ESPINUDP.to_ne_bytes());
    tmpl[2..4].copy_from_slice(&port.to_be_bytes());
    tmpl[4..6].copy_from_slice(&port.to_be_bytes());
    tmpl
}

fn put_address(bytes: &mut [u8], at: usize, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => bytes[at..at + 4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => bytes[at..at + 16].copy_from_slice(&v6.octets()),
    }
}

fn family(of: IpAddr) -> u16 {
    (if of.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u16
}

// === answers ===

fn decode_sa(answer: &[u8]) -> Option<Sa> {
    let (info, rest) = answer.split_at_checked(USERSA_INFO)?;
    let (reqid, family) = (number(info, SA_REQID)?, short(info, SA_FAMILY)?);
    let replay = attr(rest, XFRMA_REPLAY_ESN_VAL).unwrap_or_default();
    let sent = u64::from(number(replay, 12).unwrap_or(0)) << 32 | u64::from(number(replay, 4).unwrap_or(0));
    // One that the kernel only waits for has the numbers of the policy that asked for it, and not these.
    let flags = XFRM_STATE_AF_UNSPEC | XFRM_STATE_ESN;
    let is_whole = i32::from(info[SA_ID + 20]) == libc::IPPROTO_ESP && info[SA_FAMILY + 4] & flags == flags;
    (is_whole && [ESP_IN, ESP_OUT, ESP_ANCHOR].contains(&reqid)).then_some(Sa {
        saddr: address(info, SA_SADDR, family)?,
        daddr: address(info, SA_ID, family)?,
        spi: u32::from_be_bytes(*info.get(SA_ID + 16..)?.first_chunk()?),
        reqid,
        if_id: attr(rest, XFRMA_IF_ID).and_then(|id| number(id, 0))?,
        far_end: PublicKey(*info.first_chunk()?),
        port: attr(rest, XFRMA_ENCAP).and_then(|tmpl| Some(u16::from_be_bytes(*tmpl.get(4..)?.first_chunk()?))),
        sent,
    })
}

fn decode_policy(answer: &[u8]) -> Option<Policy> {
    let (info, rest) = answer.split_at_checked(USERPOLICY_INFO)?;
    let mut templates = attrs(rest).filter(|(id, _)| *id == XFRMA_TMPL);
    let (_, tmpl) = templates.next()?;
    let reqid = number(tmpl, TMPL_REQID)?;
    let direction = Direction::of(*info.get(POLICY_DIR)?)?;
    let (at, length) = if direction == Direction::Out { (0, 42) } else { (16, 43) };
    let range = IpNet::new(address(info, at, short(info, 40)?)?, *info.get(length)?).ok()?;
    let outer = short(tmpl, 24)?;
    let between = || Some((address(tmpl, TMPL_SADDR, outer)?, address(tmpl, 0, outer)?));
    [ESP_IN, ESP_OUT].contains(&reqid).then_some(Policy {
        direction,
        range,
        if_id: attr(rest, XFRMA_IF_ID).and_then(|id| number(id, 0))?,
        spi: u32::from_be_bytes(*tmpl.get(16..)?.first_chunk()?),
        between: (direction == Direction::Out).then(between).flatten(),
    })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn address(bytes: &[u8], at: usize, family: u16) -> Option<IpAddr> {
    let bytes = bytes.get(at..)?;
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

// === impl Direction ===

impl Direction {
    const ALL: [Direction; 3] = [Direction::In, Direction::Out, Direction::Forward];

    fn number(self) -> u8 {
        match self {
            Direction::In => 0,
            Direction::Out => 1,
            Direction::Forward => 2,
        }
    }

    fn of(number: u8) -> Option<Direction> {
        Direction::ALL.into_iter().find(|direction| direction.number() == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_what_is_read() {
        for (saddr, daddr, range) in
            [("192.0.2.1", "192.0.2.2", "fd00:1::/64"), ("2001:db8::1", "2001:db8::2", "10.1.0.0/24")]
        {
            let [saddr, daddr]: [IpAddr; 2] = [saddr, daddr].map(|address| address.parse().unwrap());
            let far_end = PublicKey(std::array::from_fn(|at| at as u8));
            let port = daddr.is_ipv6().then_some(4500);
            let sa = Sa { saddr, daddr, spi: 0x0102_0304, reqid: ESP_IN, if_id: 77, far_end, port, sent: 5 << 32 | 7 };
            let asked = create_sa(&sa, &[1; KEY_BYTES]).payload;
            assert_eq!(decode_sa(&asked), Some(sa.clone()));
            assert_eq!(decode_sa(&create_sa(&Sa { reqid: 1, ..sa }, &[1; KEY_BYTES]).payload), None, "others'");
            for direction in Direction::ALL {
                let between = (direction == Direction::Out).then_some((saddr, daddr));
                let policy = Policy { direction, range: range.parse().unwrap(), if_id: 77, spi: 0x0102_0304, between };
                assert_eq!(decode_policy(&put_policy(&policy).payload), Some(policy));
            }
        }
    }

    #[test]
    fn nothing_that_a_kernel_says_is_too_strange() {
        for bytes in [&[][..], &[0xff; 100], &[0; 168], &[0xff; 224], &[0; 400], &[0xff; 600]] {
            assert_eq!((decode_sa(bytes), decode_policy(bytes)), (None, None));
        }
    }
}
