//! The plan for one peer: which instance carries each family of packets to it, and the routes, neighbours and
//! forwarding entries that takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tartan_model::{Condition, Config, Encapsulation, Endpoint, FabricMode, Family, Passing, World};
use tartan_netstate::{Key, LinkName, Object, Owner, Part, Route, State};

use crate::census::{Census, Member};
use crate::choose::{Choice, Ground, Manner, choose, target};
use crate::mtu::MIN_MTU;
use crate::route::{carrier, route_at, route_by, route_to, standby_route};
use crate::{Instance, LocalNode, Peer, fabric_of, fallback, nodes, ownership};

/// Packets to a peer go, and in clear.
const UNENCRYPTED: &str = "Unencrypted";

/// How things stand with one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// For each family, and in it for each way that pools ask for. Where the peer has no ranges of a family, nothing is used
    /// and only the target stands.
    pub choices: Vec<(Family, Choice)>,
    /// What carries packets to it in the kernel, and is no longer chosen.
    pub leaving: BTreeSet<Instance>,
    pub live: bool,
    /// What encrypts packets to its own addresses.
    pub to_itself: Option<Instance>,
    pub blocks: Vec<IpNet>,
    pub conditions: Vec<Condition>,
    /// The kernel uses what the peer no longer says it accepts: only the kernel knows where that leads.
    pub(crate) clings: bool,
    pub(crate) part: Part,
}

/// What the plan for every peer depends on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Common {
    pub(crate) config: Arc<Config>,
    /// Pools that say for themselves how packets to their addresses cross nodes, in order.
    pub(crate) pools: Vec<(IpNet, Encapsulation)>,
    pub(crate) node: LocalNode,
    pub(crate) ground: Ground,
}

/// The plan for one peer. One that is not live is served by what there is: `receives`.
pub(crate) fn plan(
    world: &World,
    common: &Common,
    census: &Census,
    receives: &BTreeSet<Instance>,
    name: &Arc<str>,
    member: &Member,
) -> PeerState {
    let (node, advert) = (&common.node, &member.advert);
    let mut state = PeerState { live: member.live, ..PeerState::default() };
    if let Some(condition) = ownership::stolen(node, census, name, member) {
        state.conditions.extend(member.live.then_some(condition));
        return state;
    }
    state.conditions.extend(member.unclear.as_deref().cloned());
    state.blocks = ownership::blocks(node, census, name, member, &mut state.conditions);
    // With somebody else's fabric there is no way of ours, whatever the peer says.
    let ours = common.config.fabric != FabricMode::None;
    let heard = |at: &Instance| ours && (member.live || receives.contains(at));
    let accepts: Vec<(Instance, &Endpoint)> = member.accepts().collect();
    let accepted = |at: &Instance| accepts.iter().any(|(accepts, _)| accepts == at);
    let heard_of = accepts.iter().filter(|(at, _)| heard(at));
    let hears: Vec<(Instance, Peer<'_>)> =
        heard_of.map(|(at, endpoint)| (*at, to_peer(name, member, endpoint))).collect();
    let mut objects = Vec::new();
    for family in Family::ALL.into_iter().filter(|family| world.features.ipv6 || *family == Family::V4) {
        for (manner, blocks) in common.by_manner(&state.blocks, family) {
            let mut target = target(&common.config, manner, node, &advert.addresses, family);
            if member.annotated {
                // Whatever is configured, the way that Flannel takes: without encapsulation first, where it does that.
                let leads = |(at, peer): &&(Instance, Peer<'_>)| fabric_of(at).hop(node, at, peer, family).is_ok();
                target = hears.iter().find(leads).or(hears.first()).map(|(at, _)| *at).or(target);
            }
            let configured = target;
            let instead = configured.and_then(|at| fallback::of(world, common, (name, member), at, &blocks));
            if let Some(instead) = instead.filter(|instead| instead.holds) {
                target = Some(instead.to);
            }
            let mut choice = Choice { target, ..Choice::default() };
            if !blocks.is_empty() {
                let mirror = &world.programmed.mirror;
                let of_device = |device: &LinkName| common.ground.devices.get(device).copied();
                let kernel: BTreeSet<Instance> =
                    blocks.iter().filter_map(|block| carrier(route_at(mirror, &route_to(block))?, of_device)).collect();
                let current = target.filter(|at| kernel.contains(at)).or_else(|| kernel.first().copied());
                // A peer that says "I won't" has not heard yet that packets come: it will when it hears, and waits for that.
                // Who has gone over to Flannel will never hear.
                let kept = current.filter(|at| heard(at) && !accepted(at) && !member.annotated);
                state.clings |= kept.is_some();
                let endpoint = |at: Instance| {
                    let told = advert.known_as(&at.to_string()).cloned();
                    told.or_else(|| fabric_of(&at).endpoint_in_kernel(mirror, &at, advert, &blocks))
                };
                let kept = kept.and_then(|at| Some((at, endpoint(at)?)));
                let mut hears = hears.clone();
                hears.extend(kept.iter().map(|(at, endpoint)| (*at, to_peer(name, member, endpoint))));
                let leads = |(at, peer): &&(Instance, Peer<'_>)| fabric_of(at).hop(node, at, peer, family).is_ok();
                let usable: Vec<Instance> = hears.iter().filter(leads).map(|(at, _)| *at).collect();
                let waits =
                    |at: &Instance| hears.iter().any(|(of, peer)| of == at && awaits_handshake(world, node, at, peer));
                let usable = encrypted_first(common, usable, current, waits);
                let listens = member.live && !member.annotated;
                choice = choose(&common.ground, listens, &usable, target, current);
                if let Some((at, peer)) = hears.iter().find(|(at, _)| Some(*at) == choice.used) {
                    let mtu = narrowed(world, name, at);
                    objects.extend(carry(common, at, peer, (family, &blocks), mtu, route_to));
                }
                // No route leads by a device that is yet to be made.
                let stands_by = |at: &Instance| {
                    instead.is_some_and(|instead| instead.holds || common.ground.ready.contains(at))
                        && Some(*at) == configured
                };
                if let Some((at, peer)) = hears.iter().find(|(at, _)| stands_by(at)) {
                    objects.extend(carry(common, at, peer, (family, &blocks), None, standby_route));
                }
                state.leaving.extend(kernel.into_iter().filter(|at| Some(*at) != choice.used));
                state.conditions.extend(shortfall(common, name, member, &hears, family, &choice));
                state.conditions.extend(fallen_back(name, configured, &choice));
            }
            state.choices.push((family, choice));
        }
    }
    state.choices.shrink_to_fit();
    state.to_itself = nodes::carrier(common, member, &state);
    objects.extend(state.to_itself.iter().flat_map(|at| nodes::routes(common, member, at)));
    // After those that carry: of two addresses for one range the one in use stays.
    objects.extend(receives.iter().flat_map(|at| fabric_of(at).admit(node, at, advert, &state.blocks)));
    state.part = Part::of(&Owner::Peer(name.clone()), objects);
    if !member.live {
        state.conditions.clear();
    }
    state.conditions.dedup();
    state
}

/// What may be used. A pair goes over to encryption when its kernels have shaken hands, and not before: a handshake that
/// the other end was not ready for is tried again only after seconds.
fn encrypted_first(
    common: &Common,
    mut usable: Vec<Instance>,
    current: Option<Instance>,
    waits: impl Fn(&Instance) -> bool,
) -> Vec<Instance> {
    let works = |at: &Instance| current == Some(*at);
    let strict = common.config.strict_encryption;
    usable.retain(|at| at.is_encrypted() || !common.ground.strict && (!strict || works(at)));
    let is_there = |at: &Instance| works(at) || common.ground.ready.contains(at) && !waits(at);
    if usable.iter().any(is_there) {
        usable.retain(|at| works(at) || !waits(at));
    }
    usable
}

/// Whether the pair would have to shake hands first, which by ipsec takes addresses of one family.
fn awaits_handshake(world: &World, node: &LocalNode, at: &Instance, to: &Peer<'_>) -> bool {
    let in_common = |(family, _): (Family, &IpAddr)| node.fabric_addresses.get(family).is_some();
    if matches!(at, Instance::Ipsec { .. }) && !to.fabric_addresses.iter().any(in_common) {
        return false;
    }
    to.endpoint.public_key.is_some_and(|key| world.host.wireguard.handshakes.get(&(at.device(), key)) != Some(&true))
}

fn to_peer<'a>(name: &'a str, member: &Member, endpoint: &'a Endpoint) -> Peer<'a> {
    let advert = &member.advert;
    Peer { name, addresses: advert.addresses, fabric_addresses: advert.fabric_addresses, endpoint }
}

/// The routes to these ranges, and what their next hop takes.
fn carry(
    common: &Common,
    at: &Instance,
    to: &Peer<'_>,
    (family, blocks): (Family, &[&IpNet]),
    mtu: Option<u32>,
    key: impl Fn(&IpNet) -> Key,
) -> Vec<(Key, Object)> {
    let fabric = fabric_of(at);
    let Ok(hop) = fabric.hop(&common.node, at, to, family) else { return Vec::new() };
    let route = Route { mtu, ..route_by(&hop, &common.node, family) };
    let routes = blocks.iter().map(|block| (key(block), Object::Route(route.clone().into())));
    fabric.reach(at, to, family, blocks).into_iter().chain(routes).collect()
}

/// The largest packet that gets to the peer, where that is less than pods may send: the kernel says so to who sends a larger one,
/// as it does of a link (RFC 1191, RFC 8201).
fn narrowed(world: &World, name: &Arc<str>, at: &Instance) -> Option<u32> {
    match fallback::passing(world, name, *at)? {
        Passing::UpTo(bytes) => Some(MIN_MTU.max(bytes)),
        Passing::Nothing | Passing::All => None,
    }
}

/// Why packets of a family do not go as the configuration asks, unless time will mend it.
fn shortfall(
    common: &Common,
    name: &str,
    member: &Member,
    hears: &[(Instance, Peer<'_>)],
    family: Family,
    choice: &Choice,
) -> Option<Condition> {
    let node = &common.node;
    // A node without pods of a family has nobody who would miss it.
    node.fabric_addresses.get(family)?;
    // Of a word that is not understood that is said already.
    if common.config.fabric == FabricMode::None || member.unclear.is_some() {
        return None;
    }
    let now = fmt::from_fn(|out| match choice.used {
        Some(used) => write!(out, "{used} goes on carrying packets there"),
        None => out.write_str("no route leads there"),
    });
    let condition = |message: String, fix: &str| Condition {
        about: format!("Node/{name}"),
        field: "NetworkConfig spec.fabric".into(),
        reason: "NoCommonFabric",
        message: format!("{message}; {now}"),
        fix: fix.into(),
    };
    let Some(target) = choice.target else {
        if common.config.encrypts_by() == Some(FabricMode::Ipsec) && common.node.ipsec.iter().next().is_none() {
            let without = "without a secret of the cluster nothing is encrypted by ipsec";
            return match choice.used {
                Some(used) if used.is_encrypted() => None,
                Some(_) => Some(unencrypted(name, &format!("{without}; {now}"))),
                None => Some(condition(
                    format!("{without}, and no other way leads there"),
                    "see the condition SecretMissing",
                )),
            };
        }
        let message = format!("{name} and {} have no address family in common that spec.underlay allows", node.name);
        return Some(condition(message, "give both an address of one family, or change spec.underlay"));
    };
    let in_clear = target.is_encrypted() && choice.used.is_some_and(|used| !used.is_encrypted());
    if let Some((at, peer)) = hears.iter().find(|(at, _)| *at == target) {
        return match fabric_of(at).hop(node, at, peer, family) {
            Err(wrong) => Some(Condition { message: format!("{}; {now}", wrong.message), ..wrong }),
            Ok(_) if in_clear => {
                let missed = if matches!(target, Instance::Ipsec { .. }) { "answer" } else { "handshake" };
                Some(unencrypted(name, &format!("there was no {missed} by {target} yet; {now}")))
            }
            Ok(_) => None,
        };
    }
    if in_clear && !member.advert.accepts.is_empty() {
        return Some(unencrypted(name, &format!("{name} does not hear {target}; {now}")));
    }
    // A peer that accepts nothing yet is about to; one that accepts only other things is a matter for its admin.
    let carried = choice.announce.is_some_and(|at| member.accepts().any(|(accepted, _)| accepted == at));
    if carried || member.advert.accepts.is_empty() {
        return None;
    }
    let theirs: Vec<String> = member.advert.accepts.iter().map(|end| end.instance.to_string()).collect();
    let message = format!("{} sends by {target}, but {name} hears only {}", node.name, theirs.join(", "));
    Some(condition(message, "look at the agent there: it has not taken the present configuration, or cannot"))
}

/// What is asked for would encrypt, is blocked, and what stands in for it does not.
fn fallen_back(name: &str, configured: Option<Instance>, choice: &Choice) -> Option<Condition> {
    let blocked = configured.filter(|at| at.is_encrypted() && choice.target != configured)?;
    let used = choice.used.filter(|used| !used.is_encrypted())?;
    Some(unencrypted(name, &format!("{blocked} does not get there; {used} goes on carrying packets there")))
}

fn unencrypted(name: &str, why: &str) -> Condition {
    Condition {
        about: format!("Node/{name}"),
        field: "NetworkConfig spec.encryption".into(),
        reason: UNENCRYPTED,
        message: format!("packets to pods of {name} go in clear: {why}"),
        fix: "if this stays, see that UDP at that port, or ESP, gets through between the two, and `tartan status` on that node"
            .into(),
    }
}

// === impl Common ===

impl Common {
    /// Ranges of a family, by how packets to them are to cross nodes; without any, that of the configuration.
    fn by_manner<'a>(&self, blocks: &'a [IpNet], family: Family) -> BTreeMap<Manner, Vec<&'a IpNet>> {
        let mut by_manner: BTreeMap<Manner, Vec<&IpNet>> = BTreeMap::new();
        for block in blocks.iter().filter(|block| Family::of_net(block) == family) {
            let pool = self.pools.iter().find(|(range, _)| range.contains(block)).map(|(_, says)| *says);
            by_manner.entry(Manner::of(&self.config, pool)).or_default().push(block);
        }
        if by_manner.is_empty() {
            by_manner.insert(Manner::of(&self.config, None), Vec::new());
        }
        by_manner
    }
}

// === impl PeerState ===

impl PeerState {
    /// What carries packets to the peer now; two where the families go different ways.
    pub fn used(&self) -> impl Iterator<Item = Instance> {
        distinct(self.choices.iter().filter_map(|(_, choice)| choice.used))
    }

    /// What the configuration asks for.
    pub fn targets(&self) -> impl Iterator<Item = Instance> {
        distinct(self.choices.iter().filter_map(|(_, choice)| choice.target))
    }

    /// Whether some family of packets does not yet go as the configuration asks.
    pub fn is_moving(&self) -> bool {
        let served = |family| self.blocks.iter().any(|block| Family::of_net(block) == family);
        let wrong = |(family, choice): &(Family, Choice)| served(*family) && choice.used != choice.target;
        !self.leaving.is_empty() || self.choices.iter().any(wrong)
    }

    /// Whether packets to all its ranges of which family this node has pods go their way, as the kernel was read or
    /// acknowledged to hold.
    pub(crate) fn is_reached(&self, node: &LocalNode, mirror: &State) -> bool {
        let served = |family| self.choices.iter().all(|(of, choice)| *of != family || choice.used.is_some());
        let missed = |family| node.fabric_addresses.get(family).is_some() && !served(family);
        !self.blocks.iter().any(|block| missed(Family::of_net(block))) && self.part.is_in(mirror)
    }

    /// Whether it cannot be reached as things are configured, and says why.
    pub(crate) fn is_given_up(&self) -> bool {
        self.conditions.iter().any(|condition| condition.reason != UNENCRYPTED)
    }

    /// Every instance that packets to this peer may take, now or soon.
    pub(crate) fn sends(&self) -> impl Iterator<Item = Instance> {
        let chosen = self.choices.iter().flat_map(|(_, choice)| [choice.used, choice.announce]).flatten();
        distinct(chosen.chain(self.leaving.iter().copied()))
    }
}

fn distinct(instances: impl Iterator<Item = Instance>) -> impl Iterator<Item = Instance> {
    instances.collect::<BTreeSet<_>>().into_iter()
}
