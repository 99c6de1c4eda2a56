//! Connection tracking: forgetting what would lead packets to where a pod no longer is, and how full the table is.
//!
//! The kernel finds entries only by walking its whole table, which takes milliseconds however few there are. So a thread
//! of its own collects what is to be flushed and does it in one walk; nobody waits for it, unless an address comes back
//! before: then its old connections must be forgotten first, or the new pod would get what was the old one's, and its own
//! connections would be forgotten instead ([`arrival`]).
//!
//! Invariant: entries are flushed when an object arrives or departs ([`effect`]), for no other reason, and lose their stamp
//! when an era of generations is over. Deleting what is absent is success.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tartan_netstate::claims::{CT_MARK_JUDGED, NFT_HOSTPORTS_MAP, POD_LINK_PREFIX};
use tartan_netstate::policy::Element;
use tartan_netstate::{Key, LinkName, Netns, Op, Stamps};

use crate::KernelError;
use crate::nfnetlink::{Attrs, Message, NLM_F_DUMP, Nfnetlink, attr, attr_u32};

/// What comes within this time of the first goes in the same walk.
const TOGETHER: Duration = Duration::from_millis(50);
/// Between two walks at least: each takes a core for as long as the table is large.
const REST: Duration = Duration::from_secs(1);
/// How often a walk is tried, the first time included, [`TOGETHER`] apart.
const TRIES: usize = 8;

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = 0;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const IPCTNL_MSG_CT_GET_STATS_CPU: u16 = 4;
const IPCTNL_MSG_CT_GET_STATS: u16 = 5;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
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
const AF_INET6: u8 = 10;

/// Connection tracking of one network namespace.
pub struct Conntrack {
    netlink: Nfnetlink,
}

/// Flushes in a thread of its own; dropping it does what is left and waits for that.
pub struct Flusher {
    wanted: Arc<Mutex<BTreeSet<Effect>>>,
    wake: Option<mpsc::Sender<()>>,
    failed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// What a step of a change calls for in connection tracking once it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// A pod's address is gone. Connections its owner began, and those that reach it by whatever address they were sent
    /// to, are forgotten.
    FlushAddress(IpAddr),
    /// A UDP port of the node leads to a pod from now on. Connections to this port without any translation are
    /// forgotten. That never breaks one: the next packet makes a new entry, which is then translated if it must be.
    FlushUntranslated { v6: bool, port: u16 },
    /// An era of generations has begun after the one that stamped with these. They are taken off the connections that
    /// carry them, before they come round.
    ForgetStamps(Stamps),
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

/// What `op` calls for.
///
/// A pod's address goes when the neighbour on its link does. A UDP port needs a flush when it comes because a client
/// that kept sending before keeps an entry alive that knows of no translation.
pub fn effect(op: Op<'_>) -> Option<Effect> {
    match op {
        Op::Delete(Key::Neigh { ns: Netns::Host, link, address }, _) if link.as_str().starts_with(POD_LINK_PREFIX) => {
            Some(Effect::FlushAddress(*address))
        }
        Op::Create(Key::NftElement { set, key }, _) if set.starts_with(NFT_HOSTPORTS_MAP) => match *key.bytes {
            [.., IPPROTO_UDP, 0, 0, 0, high, low, 0, 0] => {
                Some(Effect::FlushUntranslated { v6: set.ends_with('6'), port: u16::from_be_bytes([high, low]) })
            }
            _ => None,
        },
        _ => None,
    }
}

/// The address that somebody has from this step on: a pod of this node, or somebody elsewhere whom policy begins to tell
/// apart.
pub fn arrival(op: Op<'_>) -> Option<IpAddr> {
    match op {
        Op::Create(Key::Neigh { ns: Netns::Host, link, address }, _) if link.as_str().starts_with(POD_LINK_PREFIX) => {
            Some(*address)
        }
        Op::Create(key, _) | Op::Replace { key, .. } => match Element::of(key) {
            Some(Element::Address(address)) => Some(address),
            _ => None,
        },
        Op::Delete(..) => None,
    }
}

/// On which links of pods each address is. It may come on a new one before it goes from the old one.
#[derive(Default)]
pub struct Owners(BTreeMap<IpAddr, BTreeSet<LinkName>>);

/// What a step makes of an address that two links have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owned {
    /// It came on a second one.
    Twice(IpAddr),
    /// It went from one, and is on another.
    Still,
}

// === impl Owners ===

impl Owners {
    /// Takes a step that was done.
    pub fn note(&mut self, op: Op<'_>) -> Option<Owned> {
        let (Op::Create(key, _) | Op::Delete(key, _)) = op else { return None };
        let Key::Neigh { ns: Netns::Host, link, address } = key else { return None };
        if !link.as_str().starts_with(POD_LINK_PREFIX) {
            return None;
        }
        let links = self.0.entry(*address).or_default();
        if matches!(op, Op::Create(..)) {
            links.insert(link.clone());
            return (links.len() > 1).then_some(Owned::Twice(*address));
        }
        links.remove(link);
        if links.is_empty() {
            self.0.remove(address);
            return None;
        }
        Some(Owned::Still)
    }
}

// === impl Conntrack ===

impl Conntrack {
    /// Connection tracking of the calling thread's network namespace.
    pub fn open() -> Result<Conntrack, KernelError> {
        Ok(Conntrack { netlink: Nfnetlink::open()? })
    }

    /// Does all of `effects` in one walk. Gives back how many entries went, or lost their stamp.
    pub fn flush(&mut self, effects: &BTreeSet<Effect>) -> Result<usize, KernelError> {
        let (mut going, mut stamped) = (Vec::new(), Vec::new());
        let walk = message(IPCTNL_MSG_CT_GET, NLM_F_DUMP, 0, Attrs::new());
        self.netlink.request_each(&walk, "find tracked connections", |family, entry| {
            if concerned(family, entry).iter().flatten().any(|effect| effects.contains(effect)) {
                going.push((family, entry.to_vec()));
            } else if stamps_on(entry).is_some_and(|stamps| effects.contains(&Effect::ForgetStamps(stamps))) {
                stamped.push((family, entry.to_vec()));
            }
        })?;
        going.iter().try_for_each(|(family, entry)| self.delete(*family, entry))?;
        stamped.iter().try_for_each(|(family, entry)| self.forget_stamp(*family, entry))?;
        Ok(going.len() + stamped.len())
    }

    /// The addresses that connections were begun from, and are answered from.
    pub fn ends(&mut self) -> Result<BTreeSet<IpAddr>, KernelError> {
        let mut ends = BTreeSet::new();
        let walk = message(IPCTNL_MSG_CT_GET, NLM_F_DUMP, 0, Attrs::new());
        self.netlink.request_each(&walk, "find who is talked to", |_, entry| {
            let source = |tuple| address(attr(attr(entry, tuple)?, CTA_TUPLE_IP)?);
            ends.extend([CTA_TUPLE_ORIG, CTA_TUPLE_REPLY].into_iter().filter_map(source));
        })?;
        Ok(ends)
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

    fn delete(&mut self, family: u8, entry: &[u8]) -> Result<(), KernelError> {
        // The id tells it from a connection of the same addresses and ports that was made since.
        let attrs = copied(entry, &[CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID]);
        let delete = message(IPCTNL_MSG_CT_DELETE, 0, family, attrs);
        gone_is_done(self.netlink.request(&delete, "delete a tracked connection"))
    }

    /// All other bits of the mark stay. Whose stamp is a newer one by now is judged again, which cuts nobody.
    fn forget_stamp(&mut self, family: u8, entry: &[u8]) -> Result<(), KernelError> {
        let mut attrs = copied(entry, &[CTA_TUPLE_ORIG, CTA_ZONE]);
        attrs.u32(CTA_MARK, 0).u32(CTA_MARK_MASK, CT_MARK_JUDGED);
        let update = message(IPCTNL_MSG_CT_NEW, 0, family, attrs);
        gone_is_done(self.netlink.request(&update, "clear a connection's mark"))
    }
}

/// Those of an entry's attributes, as far as it has them.
fn copied(entry: &[u8], ids: &[u16]) -> Attrs {
    let mut attrs = Attrs::new();
    for id in ids {
        if let Some(value) = attr(entry, *id) {
            attrs.bytes(*id, value);
        }
    }
    attrs
}

/// An entry that has gone meanwhile needs nothing any more.
fn gone_is_done<T>(answer: Result<T, KernelError>) -> Result<(), KernelError> {
    match answer {
        Ok(_) | Err(KernelError::Refused { errno: Errno::ENOENT, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The effects that would take this entry.
fn concerned(family: u8, entry: &[u8]) -> [Option<Effect>; 3] {
    let source = |tuple| address(attr(attr(entry, tuple)?, CTA_TUPLE_IP)?);
    let untranslated = || {
        let proto = attr(attr(entry, CTA_TUPLE_ORIG)?, CTA_TUPLE_PROTO)?;
        let is_udp = attr(proto, CTA_PROTO_NUM) == Some(&[IPPROTO_UDP]);
        let plain = attr_u32(entry, CTA_STATUS)? & IPS_NAT_MASK == 0;
        let port = u16::from_be_bytes(*attr(proto, CTA_PROTO_DST_PORT)?.first_chunk()?);
        (is_udp && plain).then_some(Effect::FlushUntranslated { v6: family == AF_INET6, port })
    };
    [
        source(CTA_TUPLE_ORIG).map(Effect::FlushAddress),
        source(CTA_TUPLE_REPLY).map(Effect::FlushAddress),
        untranslated(),
    ]
}

fn stamps_on(entry: &[u8]) -> Option<Stamps> {
    Stamps::on(attr_u32(entry, CTA_MARK)?)
}

/// The source address of a tuple.
fn address(ip: &[u8]) -> Option<IpAddr> {
    let v4 = || Some(IpAddr::from(*attr(ip, CTA_IP_V4_SRC)?.first_chunk::<4>()?));
    let v6 = || Some(IpAddr::from(*attr(ip, CTA_IP_V6_SRC)?.first_chunk::<16>()?));
    v4().or_else(v6)
}

fn message(kind: u16, flags: u16, family: u8, attrs: Attrs) -> Message {
    Message { kind: NFNL_SUBSYS_CTNETLINK << 8 | kind, flags, family, attrs }
}

// === impl Flusher ===

impl Flusher {
    /// In the calling thread's network namespace.
    pub fn start() -> Result<Flusher, KernelError> {
        let mut conntrack = Conntrack::open()?;
        let (wake, inbox) = mpsc::channel();
        let wanted = Arc::<Mutex<BTreeSet<Effect>>>::default();
        let failed = Arc::new(AtomicU64::new(0));
        let (effects, count) = (wanted.clone(), failed.clone());
        let work = move || {
            step_back();
            let mut rested = Instant::now();
            while let Ok(()) = inbox.recv() {
                wait(&inbox, rested.max(Instant::now() + TOGETHER));
                let done = (0..TRIES).any(|tries| {
                    if tries > 0 {
                        wait(&inbox, Instant::now() + TOGETHER);
                    }
                    // Locked all the while: who takes one out waits until it is not half done.
                    let mut effects = lock(&effects);
                    let done = effects.is_empty() || conntrack.flush(&effects).is_ok();
                    if done {
                        effects.clear();
                    } else if tries + 1 == TRIES {
                        // Who begins the next era finds that its stamps are still there.
                        effects.retain(|effect| matches!(effect, Effect::ForgetStamps(_)));
                    }
                    done
                });
                rested = Instant::now() + REST;
                if !done {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let thread = std::thread::Builder::new().name("conntrack".into()).spawn(work);
        let thread = thread.map_err(|error| KernelError::Refused {
            doing: "start the conntrack thread".into(),
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EAGAIN)),
            says: None,
        })?;
        Ok(Flusher { wanted, wake: Some(wake), failed, thread: Some(thread) })
    }

    /// Soon does what `effect` says.
    pub fn want(&self, effect: Effect) {
        lock(&self.wanted).insert(effect);
        // The thread ends only with its channel.
        let _ = self.wake.as_ref().map(|wake| wake.send(()));
    }

    /// Leaves to the caller what of these is still to be done.
    pub fn take(&self, effects: impl Iterator<Item = Effect>) -> BTreeSet<Effect> {
        // Who has nothing to take out does not wait for a walk.
        let mut effects = effects.peekable();
        if effects.peek().is_none() {
            return BTreeSet::new();
        }
        let mut wanted = lock(&self.wanted);
        if wanted.is_empty() {
            return BTreeSet::new();
        }
        effects.filter(|effect| wanted.remove(effect)).collect()
    }

    /// How many walks were given up, since the start.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Lets everybody else have the processor first: nobody waits for a walk, and pods wait for the kernel thread.
#[expect(unsafe_code, reason = "nix has no setpriority")]
fn step_back() {
    const LAST: nix::libc::c_int = 19;
    // SAFETY: the call takes numbers only. On Linux, 0 is the calling thread, and its nice value is its own.
    let _refused = unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, LAST) };
}

/// Until then, or until nobody can want anything any more.
fn wait(inbox: &mpsc::Receiver<()>, until: Instant) {
    while inbox.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
}

fn lock(wanted: &Mutex<BTreeSet<Effect>>) -> MutexGuard<'_, BTreeSet<Effect>> {
    wanted.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.wake.take();
        if let Some(thread) = self.thread.take() {
            // It does not panic; and a destructor must not.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use tartan_netstate::nft::{ElementData, Fields};
    use tartan_netstate::{LinkName, Mac, Neigh, Object, Owner, Step};

    use super::*;

    #[test]
    fn only_the_walking_thread_steps_back() {
        // proc_pid_stat(5): nice is the 19th field, the name in parentheses the second.
        let nice = || -> i32 {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse().unwrap()
        };
        let before = nice();
        let walking = std::thread::spawn(move || {
            step_back();
            nice()
        });
        assert_eq!((walking.join().unwrap(), nice()), (19, before));
    }

    #[test]
    fn effects_of_steps() {
        let check = |op: Op<'_>, wanted: Option<Effect>| assert_eq!(effect(op), wanted, "{op:?}");
        let neigh = |link: &str, address: &str| Key::Neigh {
            ns: Netns::Host,
            link: LinkName::new(link).unwrap(),
            address: address.parse().unwrap(),
        };
        let object = || Object::Neigh(Neigh { mac: Mac([2; 6]) });
        check(Op::Delete(&neigh("ttp1", "10.0.0.5"), &object()), Some(Effect::FlushAddress([10, 0, 0, 5].into())));
        check(Op::Create(&neigh("ttp1", "10.0.0.5"), &object()), None);
        check(Op::Delete(&neigh("ttx1", "10.0.0.5"), &object()), None);

        let port = |set: &str, fields: Fields| {
            let key = Key::NftElement { set: set.into(), key: fields.key() };
            let made = Step::create(key.clone(), Object::NftElement(ElementData::default()), Owner::Node);
            (made, Step::delete(key, object(), Owner::Node))
        };
        let anywhere = |proto| Fields::new().proto(proto).port(0x1234);
        let at = Fields::new().addr([192, 0, 2, 1].into()).proto(IPPROTO_UDP).port(53);
        check(port("hostports4", anywhere(17)).0.op(), Some(Effect::FlushUntranslated { v6: false, port: 0x1234 }));
        check(port("hostports6", anywhere(17)).0.op(), Some(Effect::FlushUntranslated { v6: true, port: 0x1234 }));
        check(port("hostports_at4", at.clone()).0.op(), Some(Effect::FlushUntranslated { v6: false, port: 53 }));
        check(port("hostports_at4", at).1.op(), None);
        check(port("hostports4", anywhere(6)).0.op(), None);
        check(port("other4", anywhere(17)).0.op(), None);
    }

    #[test]
    fn arrivals_by_steps() {
        let check = |op: Op<'_>, wanted: Option<&str>| {
            assert_eq!(arrival(op), wanted.map(|address| address.parse().unwrap()), "{op:?}");
        };
        let object = || Object::Neigh(Neigh { mac: Mac([2; 6]) });
        let neigh = |link: &str| Key::Neigh {
            ns: Netns::Host,
            link: LinkName::new(link).unwrap(),
            address: "fd00::5".parse().unwrap(),
        };
        check(Op::Create(&neigh("ttp1"), &object()), Some("fd00::5"));
        check(Op::Create(&neigh("ttx1"), &object()), None);
        check(Op::Delete(&neigh("ttp1"), &object()), None);
        let element = |set: &str, address: &str| Key::NftElement {
            set: set.into(),
            key: Fields::new().addr(address.parse().unwrap()).key(),
        };
        let identity = element("policy_addresses4", "10.0.0.5");
        check(Op::Create(&identity, &object()), Some("10.0.0.5"));
        check(Op::Replace { key: &identity, old: &object(), new: &object() }, Some("10.0.0.5"));
        check(Op::Delete(&identity, &object()), None);
        check(Op::Create(&element("policy_addresses6", "fd00::5"), &object()), Some("fd00::5"));
        check(Op::Create(&element("policy_sources4", "10.0.0.5"), &object()), None);
    }

    #[test]
    fn an_address_that_comes_before_it_goes_is_forgotten_once() {
        let address = "10.0.0.5".parse().unwrap();
        let step = |link: &str, comes: bool| {
            let key = Key::Neigh { ns: Netns::Host, link: LinkName::new(link).unwrap(), address };
            let object = Object::Neigh(Neigh { mac: Mac([2; 6]) });
            if comes { Step::create(key, object, Owner::Node) } else { Step::delete(key, object, Owner::Node) }
        };
        let mut owners = Owners::default();
        let mut check = |link, comes, wanted| assert_eq!(owners.note(step(link, comes).op()), wanted, "{link} {comes}");
        check("ttp1", true, None);
        check("ttp2", true, Some(Owned::Twice(address)));
        check("ttp1", false, Some(Owned::Still));
        check("ttx1", true, None);
        check("ttp2", false, None);
        check("ttp3", true, None);
    }
}
