//! What rounds of probes that were not all answered come to, and how it is told.

use std::collections::{BTreeMap, BTreeSet};

use tartan_model::Condition;
use tartan_netstate::LinkName;

use super::{Path, Standing, Target};
use crate::Instance;

/// Peers named in one condition at most; there may be thousands.
const NAMED: usize = 8;

/// What one round of probes showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Through the fabric: a small echo,
    pub(super) small: bool,
    /// one as large as pods' packets may be,
    pub(super) full: bool,
    /// a datagram without a checksum,
    pub(super) plain: bool,
    /// and one whose checksum is left to the device.
    pub(super) summed: bool,
    /// The peer's own address, past the fabric.
    pub(super) underlay: bool,
    /// The peer asked through the fabric, not long ago.
    pub(super) heard: bool,
}

/// What is wrong with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// Nothing gets through the fabric, though the peer itself can be reached.
    Blocked {
        /// What the peer sends arrives.
        heard: bool,
    },
    /// What is sent there does not arrive, by whatever way; what the peer sends does.
    OneWay,
    /// Nothing comes from there, by whatever way.
    Silent,
    /// Packets with a checksum that a device was to compute are lost.
    Checksum,
    /// Packets larger than this are lost.
    Narrow { largest: u32 },
}

// === impl Finding ===

impl Finding {
    /// One word, for machines.
    pub fn reason(self) -> &'static str {
        match self {
            Finding::Blocked { .. } => "FabricBlocked",
            Finding::OneWay => "PathOneWay",
            Finding::Silent => "PeerSilent",
            Finding::Checksum => "ChecksumsLost",
            Finding::Narrow { .. } => "PathMtuTooSmall",
        }
    }
}

// === impl Outcome ===

impl Outcome {
    pub(super) fn reached(&self) -> bool {
        self.small || self.full || self.plain || self.summed
    }

    /// Only a datagram that got there beside them tells of lost checksums: nobody may be listening.
    fn lost_sums(&self) -> bool {
        self.plain && !self.summed
    }

    pub(super) fn narrow(&self) -> bool {
        self.small && !self.full
    }

    pub(super) fn is_well(&self) -> bool {
        self.reached() && !self.lost_sums() && !self.narrow()
    }

    /// Whether what this round showed, which is well, tells that something is no more as it was in `bad`. It does not if
    /// all that could have shown it was lost.
    pub(super) fn refutes(&self, bad: &Outcome) -> bool {
        (self.summed || !bad.lost_sums()) && (self.full || !bad.narrow())
    }
}

/// What all of these rounds show; none where they differ. `largest` is the largest packet known to pass.
pub(super) fn judge<'a>(rounds: impl Iterator<Item = &'a Outcome> + Clone, largest: u32) -> Option<Finding> {
    let all = |shows: fn(&Outcome) -> bool| rounds.clone().all(shows);
    let any = |shows: fn(&Outcome) -> bool| rounds.clone().any(shows);
    if all(|round| !round.reached()) {
        let heard = any(|round| round.heard);
        return Some(match (any(|round| round.underlay), heard) {
            (true, heard) => Finding::Blocked { heard },
            (false, true) => Finding::OneWay,
            (false, false) => Finding::Silent,
        });
    }
    if all(Outcome::lost_sums) {
        return Some(Finding::Checksum);
    }
    all(Outcome::narrow).then_some(Finding::Narrow { largest })
}

/// Devices of ours by which most peers, so both of two, lose packets whose checksum is left to the device: then it is the device
/// that sends wrong ones. What one peer shows may be of its own card, or what it says itself.
pub fn lose_checksums(standings: &BTreeMap<Path, Standing>) -> BTreeSet<LinkName> {
    let mut by_device: BTreeMap<&LinkName, BTreeMap<&str, bool>> = BTreeMap::new();
    for ((peer, _), standing) in standings {
        let (lost, reached) = match standing.finding {
            Some(Finding::Checksum) => (true, true),
            Some(Finding::Narrow { .. }) => (false, true),
            None => (false, standing.round_trip.is_some()),
            _ => (false, false),
        };
        if let Some(device) = standing.target.device.as_ref().filter(|_| reached) {
            *by_device.entry(device).or_default().entry(peer).or_default() |= lost;
        }
    }
    let mostly = |peers: &BTreeMap<&str, bool>| 2 * peers.values().filter(|lost| **lost).count() > peers.len();
    by_device.into_iter().filter(|(_, peers)| mostly(peers)).map(|(device, _)| device.clone()).collect()
}

/// All that is found, told with what to do about it. `by_software` are devices of ours that compute checksums themselves.
pub fn conditions(
    node: &str,
    standings: &BTreeMap<Path, Standing>,
    standbys: &BTreeMap<Path, Standing>,
    by_software: &BTreeSet<LinkName>,
) -> Vec<Condition> {
    let mut by_reason: BTreeMap<&str, Vec<Condition>> = BTreeMap::new();
    let for_most = lose_checksums(standings);
    for ((peer, _), standing) in standbys {
        let told = fallen_back(node, peer, standing);
        let same = by_reason.entry(told.reason).or_default();
        if !same.contains(&told) {
            same.push(told);
        }
    }
    for ((peer, family), standing) in standings {
        let Some(finding) = standing.finding else { continue };
        let mut told = condition(node, peer, finding, &standing.target, by_software, &for_most);
        let other = standings.get(&(peer.clone(), family.other()));
        if other.is_some_and(|other| other.finding != Some(finding)) {
            told.message += &format!(" (so it is with packets of {family} alone)");
        }
        let same = by_reason.entry(told.reason).or_default();
        // What is so for both families is one thing.
        if !same.contains(&told) {
            same.push(told);
        }
    }
    let told = by_reason.into_values().flat_map(|all| if all.len() > NAMED { vec![summary(node, &all)] } else { all });
    told.chain(by_software.iter().map(|device| switched_off(node, device))).collect()
}

fn condition(
    node: &str,
    peer: &str,
    finding: Finding,
    target: &Target,
    by_software: &BTreeSet<LinkName>,
    for_most: &BTreeSet<LinkName>,
) -> Condition {
    let Target { at, underlay, itself_too, mtu, .. } = target;
    let envelope = at.envelope();
    let (message, fix) = match finding {
        Finding::Blocked { heard } => (
            format!(
                "{node} gets no answer from {peer} by {at}, though {peer} itself answers at {underlay}: {envelope} do not pass{}",
                if heard { format!(" from {node} to {peer}; what {peer} sends so arrives") } else { String::new() }
            ),
            match at {
                Instance::HostGw => {
                    "let them pass: clouds drop what is not from a node's own address unless their source \
                                     check is off; or set spec.fabric to vxlan"
                        .into()
                }
                _ => format!(
                    "let {envelope} pass between nodes, in both directions: firewalls on {node} and {peer}, security groups \
                     between; and echo requests that come to {peer} itself inside"
                ),
            },
        ),
        Finding::OneWay => (
            format!(
                "what {node} sends to {peer} does not arrive, neither by {at} nor to {underlay} itself, though what {peer} \
                 sends arrives"
            ),
            format!(
                "look for what drops packets from {node} to {peer}: a route, a firewall, a security group{}",
                if *itself_too {
                    format!("; {envelope} among them, by which nodes reach each other")
                } else {
                    String::new()
                }
            ),
        ),
        Finding::Silent => (
            format!("nothing comes from {peer}, neither by {at} nor from {underlay} itself"),
            format!(
                "see that {peer} is up and that packets pass between the two{}; if {peer} says PathOneWay, what is lost is on \
                 the way from {peer} to {node}",
                if *itself_too {
                    format!(", {envelope} above all, by which nodes reach each other")
                } else {
                    String::new()
                }
            ),
        ),
        Finding::Narrow { largest } => {
            let carries = largest + at.overhead();
            (
                format!(
                    "packets of more than {largest} bytes between {node} and {peer} by {at} are lost without a word; pods may \
                     send {mtu}, and {node} tells them when they do"
                ),
                format!(
                    "give every link on the way the MTU of the nodes' uplinks, or set spec.underlayMTU to {carries}, which \
                     passes"
                ),
            )
        }
        Finding::Checksum => (
            format!("packets from {node} to {peer} by {at} are lost if their checksum is left to the device"),
            match &target.device {
                Some(device) if by_software.contains(device) => format!(
                    "{device} leaves nothing to the device any more, and it goes on: look for what changes packets on the way"
                ),
                Some(device) if !for_most.contains(device) => format!(
                    "other peers get what {device} leaves to the device, so it is left as it is: look at the network card of {peer} \
                     and at what is between; `ethtool -K {device} tx off` on {node} would have the kernel compute checksums for all"
                ),
                _ => "`ethtool -K LINK tx off` for the uplink, or another driver for it".into(),
            },
        ),
    };
    Condition { about: format!("Node/{peer}"), field: String::new(), reason: finding.reason(), message, fix }
}

fn fallen_back(node: &str, peer: &str, standing: &Standing) -> Condition {
    let at = standing.target.at;
    let envelope = at.envelope();
    let (what, mend) = match standing.finding {
        Some(Finding::Narrow { largest }) => (
            format!("of {envelope} those with more than {largest} bytes inside do not pass"),
            "give every link on the way the MTU of the nodes' uplinks".into(),
        ),
        _ => (format!("{envelope} do not pass"), format!("let {envelope} pass between nodes, in both directions")),
    };
    Condition {
        about: format!("Node/{peer}"),
        field: String::new(),
        reason: "FabricFallback",
        message: format!("{node} reaches {peer} by spec.fallback, since {at} was found not to get there: {what}"),
        fix: format!("{mend}; {node} tries every few seconds and goes back by itself"),
    }
}

fn switched_off(node: &str, device: &LinkName) -> Condition {
    Condition {
        about: format!("Node/{node}"),
        field: String::new(),
        reason: "ChecksumOffloadOff",
        message: format!(
            "the uplink's driver computes wrong checksums in packets inside {device}'s; the kernel computes them now, which costs \
             processor time"
        ),
        fix: format!("try another driver or firmware, then `ethtool -K {device} tx on`: it is tested again"),
    }
}

fn summary(node: &str, all: &[Condition]) -> Condition {
    let first = all.first().expect("there are many");
    let peers: BTreeSet<&str> = all.iter().map(|one| one.about.trim_start_matches("Node/")).collect();
    let named: Vec<&str> = peers.iter().take(NAMED).copied().collect();
    let more = match peers.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Condition {
        about: format!("Node/{node}"),
        message: format!("so it is with {}{more}; of the first: {}", named.join(", "), first.message),
        ..first.clone()
    }
}
