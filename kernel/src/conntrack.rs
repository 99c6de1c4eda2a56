//! Connection tracking: forgetting what would lead packets to where a pod no longer is, and how full the table is.
//!
//! Entries are found by filters in the kernel and deleted one by one. Deleting what is absent is success.
//!
//! Invariant: entries are flushed when an object arrives or departs ([`effects`]), for no other reason.

use std::net::IpAddr;

use nix::errno::Errno;
use tartan_netstate::claims::POD_LINK_PREFIX;
use tartan_netstate::{Change, Key, Netns, Op};

use crate::KernelError;
use crate::nfnetlink::{Attrs, Message, NLM_F_DUMP, Nfnetlink, Reply, attr, attr_u32};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const IPCTNL_MSG_CT_GET_STATS_CPU: u16 = 4;
const IPCTNL_MSG_CT_GET_STATS: u16 = 5;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// Compare the tuple's source address.
const FILTER_IP_SRC: u32 = 1;
/// Compare the tuple's protocol.
const FILTER_PROTO_NUM: u32 = 1 << 3;
/// Compare the tuple's destination port.
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `IPS_SRC_NAT | IPS_DST_NAT`: an address or a port is translated.
const IPS_NAT_MASK: u32 = 0x30;

const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
const CTA_STATS_GLOBAL_MAX_ENTRIES: u16 = 2;
const CTA_STATS_INSERT_FAILED: u16 = 9;
const CTA_STATS_DROP: u16 = 10;
const CTA_STATS_EARLY_DROP: u16 = 11;

const IPPROTO_UDP: u8 = 17;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Connection tracking of one network namespace.
pub struct Conntrack {
    netlink: Nfnetlink,
}

/// What a change calls for in connection tracking once it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// A pod's address is gone: see [`Conntrack::flush_address`].
    FlushAddress(IpAddr),
    /// A UDP port of the node leads to a pod from now on: see [`Conntrack::flush_untranslated`].
    FlushUntranslated { v6: bool, port: u16 },
}

/// How full the table is, and what was lost for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries now.
    pub entries: u32,
    /// Entries there is room for.
    pub max: u32,
    /// Packets dropped because their entry could not be inserted, since boot.
    pub insert_failed: u64,
    /// Packets dropped because the table was full, since boot.
    pub drop: u64,
    /// Entries thrown out early to make room, since boot.
    pub early_drop: u64,
}

/// What `change` calls for.
///
/// A pod's address goes when the neighbour on its link does. A UDP port needs a flush when it comes because a client
/// that kept sending before keeps an entry alive that knows of no translation.
pub fn effects(change: &Change) -> Vec<Effect> {
    let mut effects: Vec<Effect> = change.ops.iter().filter_map(|(op, _)| effect(op)).collect();
    effects.sort();
    effects.dedup();
    effects
}

/// What one step calls for.
pub(crate) fn effect(op: &Op) -> Option<Effect> {
    match op {
        Op::Delete(Key::Neigh { ns: Netns::Host, link, address }, _)
            if link.as_str().starts_with(POD_LINK_PREFIX) =>
        {
            Some(Effect::FlushAddress(*address))
        }
        Op::Create(Key::NftElement { set, key }, _) if set.starts_with("hostports") => match key.bytes.as_slice() {
            [.., IPPROTO_UDP, 0, 0, 0, high, low, 0, 0] => {
                Some(Effect::FlushUntranslated { v6: set.ends_with('6'), port: u16::from_be_bytes([*high, *low]) })
            }
            _ => None,
        },
        _ => None,
    }
}

impl Conntrack {
    /// Connection tracking of the calling thread's network namespace.
    pub fn open() -> Result<Conntrack, KernelError> {
        Ok(Conntrack { netlink: Nfnetlink::open()? })
    }

    /// Does what `effect` says. Gives back how many entries went.
    pub fn carry_out(&mut self, effect: Effect) -> Result<usize, KernelError> {
        match effect {
            Effect::FlushAddress(address) => self.flush_address(address),
            Effect::FlushUntranslated { v6, port } => self.flush_untranslated(v6, IPPROTO_UDP, port),
        }
    }

    /// Deletes the connections that the owner of `address` began, and those that reach it, by whatever address they were
    /// sent to. Gives back how many.
    pub fn flush_address(&mut self, address: IpAddr) -> Result<usize, KernelError> {
        let (family, attr, octets) = match address {
            IpAddr::V4(v4) => (AF_INET, CTA_IP_V4_SRC, v4.octets().to_vec()),
            IpAddr::V6(v6) => (AF_INET6, CTA_IP_V6_SRC, v6.octets().to_vec()),
        };
        let mut flushed = 0;
        for (tuple, flags) in [(CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS), (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS)] {
            let filter = |attrs: &mut Attrs| {
                attrs.nest(tuple, |tuple| {
                    tuple.nest(CTA_TUPLE_IP, |ip| {
                        ip.bytes(attr, &octets);
                    });
                });
                // These flags alone are in the machine's byte order.
                attrs.nest(CTA_FILTER, |filter| {
                    filter.bytes(flags, &FILTER_IP_SRC.to_ne_bytes());
                });
            };
            for entry in self.find(family, filter)? {
                self.delete(family, &entry)?;
                flushed += 1;
            }
        }
        Ok(flushed)
    }

    /// Deletes connections to `port` without any translation. That never breaks one: the next packet makes a new entry,
    /// which is then translated if it must be. Gives back how many.
    pub fn flush_untranslated(&mut self, v6: bool, protocol: u8, port: u16) -> Result<usize, KernelError> {
        let family = if v6 { AF_INET6 } else { AF_INET };
        let filter = |attrs: &mut Attrs| {
            attrs.nest(CTA_TUPLE_ORIG, |tuple| {
                tuple.nest(CTA_TUPLE_PROTO, |proto| {
                    proto.bytes(CTA_PROTO_NUM, &[protocol]).bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
                });
            });
            attrs.nest(CTA_FILTER, |filter| {
                filter.bytes(CTA_FILTER_ORIG_FLAGS, &(FILTER_PROTO_NUM | FILTER_PROTO_DST_PORT).to_ne_bytes());
            });
        };
        let mut flushed = 0;
        for entry in self.find(family, filter)? {
            if attr_u32(&entry.attrs, CTA_STATUS).unwrap_or(0) & IPS_NAT_MASK == 0 {
                self.delete(family, &entry)?;
                flushed += 1;
            }
        }
        Ok(flushed)
    }

    /// How full the table is.
    pub fn stats(&mut self) -> Result<Stats, KernelError> {
        let mut stats = Stats::default();
        let global = message(IPCTNL_MSG_CT_GET_STATS, 0, 0, Attrs::new());
        for reply in self.netlink.request(&global, "read connection tracking's size")? {
            stats.entries = attr_u32(&reply.attrs, CTA_STATS_GLOBAL_ENTRIES).unwrap_or(0);
            stats.max = attr_u32(&reply.attrs, CTA_STATS_GLOBAL_MAX_ENTRIES).unwrap_or(0);
        }
        let per_cpu = message(IPCTNL_MSG_CT_GET_STATS_CPU, NLM_F_DUMP, 0, Attrs::new());
        for reply in self.netlink.request(&per_cpu, "read connection tracking's losses")? {
            let count = |id| u64::from(attr_u32(&reply.attrs, id).unwrap_or(0));
            stats.insert_failed += count(CTA_STATS_INSERT_FAILED);
            stats.drop += count(CTA_STATS_DROP);
            stats.early_drop += count(CTA_STATS_EARLY_DROP);
        }
        Ok(stats)
    }

    fn find(&mut self, family: u8, filter: impl FnOnce(&mut Attrs)) -> Result<Vec<Reply>, KernelError> {
        let mut attrs = Attrs::new();
        filter(&mut attrs);
        self.netlink.request(&message(IPCTNL_MSG_CT_GET, NLM_F_DUMP, family, attrs), "find tracked connections")
    }

    fn delete(&mut self, family: u8, entry: &Reply) -> Result<(), KernelError> {
        let mut attrs = Attrs::new();
        // The id tells it from a connection of the same addresses and ports that was made since.
        for id in [CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID] {
            if let Some(value) = attr(&entry.attrs, id) {
                attrs.bytes(id, value);
            }
        }
        let delete = message(IPCTNL_MSG_CT_DELETE, 0, family, attrs);
        match self.netlink.request(&delete, "delete a tracked connection") {
            Ok(_) | Err(KernelError::Refused { errno: Errno::ENOENT, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn message(kind: u16, flags: u16, family: u8, attrs: Attrs) -> Message {
    Message { kind: NFNL_SUBSYS_CTNETLINK << 8 | kind, flags, family, attrs }
}

#[cfg(test)]
mod tests {
    use tartan_netstate::nft::{ElementData, Fields};
    use tartan_netstate::{LinkName, Mac, Neigh, Object, Owner};

    use super::*;

    #[test]
    fn effects_of_a_change() {
        let check = |op: Op, wanted: &[Effect]| {
            let change = Change { ops: vec![(op.clone(), Owner::Node), (op, Owner::Node)] };
            assert_eq!(effects(&change), wanted, "{change:?}");
        };
        let neigh = |link: &str, address: &str| Key::Neigh {
            ns: Netns::Host,
            link: LinkName::new(link).unwrap(),
            address: address.parse().unwrap(),
        };
        let object = || Object::Neigh(Neigh { mac: Mac([2; 6]) });
        check(Op::Delete(neigh("ttp1", "10.0.0.5"), object()), &[Effect::FlushAddress([10, 0, 0, 5].into())]);
        check(Op::Create(neigh("ttp1", "10.0.0.5"), object()), &[]);
        check(Op::Delete(neigh("ttx1", "10.0.0.5"), object()), &[]);

        let port = |set: &str, fields: Fields| {
            let key = Key::NftElement { set: set.into(), key: fields.key() };
            (Op::Create(key.clone(), Object::NftElement(ElementData::default())), Op::Delete(key, object()))
        };
        let anywhere = |proto| Fields::new().proto(proto).port(0x1234);
        let at = Fields::new().addr([192, 0, 2, 1].into()).proto(IPPROTO_UDP).port(53);
        check(port("hostports4", anywhere(17)).0, &[Effect::FlushUntranslated { v6: false, port: 0x1234 }]);
        check(port("hostports6", anywhere(17)).0, &[Effect::FlushUntranslated { v6: true, port: 0x1234 }]);
        check(port("hostports_at4", at.clone()).0, &[Effect::FlushUntranslated { v6: false, port: 53 }]);
        check(port("hostports_at4", at).1, &[]);
        check(port("hostports4", anywhere(6)).0, &[]);
        check(port("other4", anywhere(17)).0, &[]);
    }
}
