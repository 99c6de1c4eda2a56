//! Which addresses are pods' anywhere in the cluster: packets to them keep their source, and are not to leave in clear where that
//! is strict.
//!
//! Invariant: one node's word makes nothing a part of the cluster that no route leads to. A block outside of pools and podCIDRs,
//! as one is whose pool was deleted or changed under its pods, counts where the fabric takes it for its node's; whatever an
//! IPBlock says of other addresses, pods go on reaching those under the node's address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use tartan_fabric::PeerState;
use tartan_model::{Block, Family, Node, Pool, World};

/// Found again when a Node, a pool or a block differs.
#[derive(Default)]
pub(crate) struct ClusterRanges {
    nodes: OrdMap<Arc<str>, Arc<Node>>,
    pools: OrdMap<Arc<str>, Arc<Pool>>,
    blocks: OrdMap<IpNet, Arc<Block>>,
    /// Of podCIDRs and pools: disjoint, in order.
    ranges: Vec<IpNet>,
    /// Blocks that are not in these.
    outside: Vec<Arc<Block>>,
}

impl ClusterRanges {
    /// All of them; this node has `own`, and peers what the fabric takes for theirs.
    pub(crate) fn of(
        &mut self,
        world: &World,
        own: &[IpNet],
        peers: &BTreeMap<Arc<str>, Box<PeerState>>,
    ) -> Vec<IpNet> {
        self.look(world);
        let has = |name: &str, range: &IpNet| peers.get(name).is_some_and(|peer| peer.blocks.contains(range));
        let claimed = self.outside.iter().flat_map(|block| claims(block));
        let theirs = claimed.filter(|(name, range)| has(name, range)).map(|(_, range)| range);
        let own = own.iter().copied().filter(|range| !is_inside(&self.ranges, range));
        let more: Vec<IpNet> = theirs.chain(own).collect();
        match more.is_empty() {
            true => self.ranges.clone(),
            false => IpNet::aggregate(&[&self.ranges[..], &more].concat()),
        }
    }

    /// Nodes' own addresses that a pool holds, where they cannot be pods': in no podCIDR and in no block.
    pub(crate) fn nodes_in_pools(&mut self, world: &World) -> BTreeSet<IpAddr> {
        self.look(world);
        let internal = world.nodes.values().flat_map(|node| node.internal_ips.iter().copied());
        let told = world.adverts.values().flat_map(|heard| heard.advert.addresses.iter().map(|(_, ip)| *ip));
        let in_pool = |ip: &IpAddr| world.pools.values().any(|pool| pool.cidr.contains(ip));
        internal.chain(told).filter(|ip| in_pool(ip) && !self.may_be_a_pods(*ip)).collect()
    }

    fn may_be_a_pods(&self, ip: IpAddr) -> bool {
        let wider = |prefix| IpNet::new(ip, prefix).expect("no longer than an address").trunc();
        let longest = Family::host_net(ip).prefix_len();
        (0..=longest).any(|prefix| self.blocks.contains_key(&wider(prefix)))
            || self.nodes.values().any(|node| node.pod_cidrs.iter().any(|range| range.contains(&ip)))
    }

    fn look(&mut self, world: &World) {
        let same_nodes = self.nodes.ptr_eq(&world.nodes) || self.nodes.diff(&world.nodes).next().is_none();
        let same_blocks = self.blocks.ptr_eq(&world.blocks) || self.blocks.diff(&world.blocks).next().is_none();
        if same_nodes && same_blocks && self.pools == world.pools {
            return;
        }
        let nodes = world.nodes.values().flat_map(|node| node.pod_cidrs.iter().copied());
        let pools = world.pools.values().map(|pool| pool.cidr);
        self.ranges = IpNet::aggregate(&nodes.chain(pools).collect());
        self.ranges.sort_unstable();
        self.outside = world.blocks.values().filter(|block| !is_inside(&self.ranges, &block.cidr)).cloned().collect();
        (self.nodes, self.pools, self.blocks) = (world.nodes.clone(), world.pools.clone(), world.blocks.clone());
    }
}

/// Whose a block is, and whose its parts are.
fn claims(block: &Block) -> impl Iterator<Item = (&str, IpNet)> {
    let parts = block.parts.iter().filter_map(|part| Some((&**part.holder.name()?, part.cidr)));
    [(&*block.node, block.cidr)].into_iter().chain(parts)
}

/// Whether one of these, which are disjoint and in order, holds the range.
fn is_inside(ranges: &[IpNet], range: &IpNet) -> bool {
    let after = ranges.partition_point(|other| other.addr() <= range.addr());
    after.checked_sub(1).is_some_and(|last| ranges[last].contains(range))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tartan_model::{Advert, Features, Heard, Holder, PerFamily, Selector};

    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    /// With a Node n1 that has a podCIDR, and peers n2 and n3; `pools` and `blocks` are of the store, a block as `NODE=RANGE`.
    fn world(pools: &str, blocks: &str) -> World {
        let mut world = World::new("n1".into(), Features::default());
        for (name, address, pod_cidrs) in [
            ("n1", "192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:1::/64"),
            ("n2", "192.0.2.2 2001:db8::2", ""),
            ("n3", "192.0.2.3 2001:db8::3", ""),
        ] {
            let node = Node {
                name: name.into(),
                uid: name.into(),
                internal_ips: address.split(' ').map(|ip| ip.parse().unwrap()).collect(),
                external_ips: Vec::new(),
                pod_cidrs: nets(pod_cidrs),
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                placement: Default::default(),
            };
            world.nodes.insert(name.into(), node.into());
        }
        for cidr in nets(pools) {
            let name: Arc<str> = cidr.to_string().into();
            let (nodes, namespaces) = (Selector::all(), Selector::all());
            let pool = Pool {
                name: name.clone(),
                cidr,
                block_size: 26,
                nodes,
                namespaces,
                disabled: false,
                encapsulation: None,
            };
            world.pools.insert(name, pool.into());
        }
        for block in blocks.split_whitespace() {
            let (node, cidr) = block.split_once('=').unwrap();
            let cidr = cidr.parse().unwrap();
            let (node, node_uid): (Arc<str>, _) = (node.into(), node.into());
            let block = Block { cidr, pool: "p".into(), node, node_uid, parts: Vec::new() };
            world.blocks.insert(cidr, block.into());
        }
        world
    }

    /// `routed`: what the fabric takes for n2's.
    fn check(ranges: &mut ClusterRanges, (pools, blocks): (&str, &str), own: &str, routed: &str, wanted: &str) {
        let mut peer = Box::<PeerState>::default();
        peer.blocks = nets(routed);
        let found = ranges.of(&world(pools, blocks), &nets(own), &BTreeMap::from([("n2".into(), peer)]));
        let mut wanted = nets(wanted);
        wanted.sort_unstable();
        let mut sorted = found;
        sorted.sort_unstable();
        assert_eq!(sorted, wanted, "pools {pools}, blocks {blocks}, own {own}, routed {routed}");
    }

    const ALWAYS: &str = "10.244.1.0/24 fd00:1::/64 ";

    #[test]
    fn a_pod_whose_pool_is_gone_is_still_a_pod() {
        // One memo for all: what was is forgotten.
        let ranges = &mut ClusterRanges::default();
        let mut check =
            |world, own, routed, wanted: &str| check(ranges, world, own, routed, &(ALWAYS.to_owned() + wanted));
        let (pool, blocks) = ("10.1.0.0/16 fd00:9::/48", "n1=10.1.0.0/26 n2=10.1.0.64/26 n2=fd00:9::/120");
        let theirs = "10.1.0.64/26 fd00:9::/120";
        check((pool, blocks), "10.1.0.0/26", theirs, pool);
        check(("", blocks), "10.1.0.0/26", theirs, "10.1.0.0/25 fd00:9::/120");
        check(("10.1.0.0/25", blocks), "10.1.0.0/26", theirs, "10.1.0.0/25 fd00:9::/120");
        check(("", ""), "", "", "");
    }

    /// Of an address that no route leads to for its sake nothing changes, whatever an IPBlock says.
    #[test]
    fn what_is_only_claimed_is_none_of_the_cluster() {
        let ranges = &mut ClusterRanges::default();
        check(ranges, ("", "n2=198.51.100.0/24 n3=0.0.0.0/1"), "", "", ALWAYS);
        check(ranges, ("", "n3=198.51.100.0/24"), "", "198.51.100.0/24", ALWAYS);
    }

    #[test]
    fn a_part_is_whoever_holds_it() {
        let mut world = world("", "");
        let cidr: IpNet = "10.1.0.0/26".parse().unwrap();
        let part = "10.1.0.16/28".parse().unwrap();
        let holder = Holder::Node { name: "n2".into(), uid: "n2".into() };
        let parts = vec![tartan_model::Part { cidr: part, holder }];
        let block = Block { cidr, pool: "p".into(), node: "gone".into(), node_uid: "gone".into(), parts };
        world.blocks.insert(cidr, block.into());
        let mut peer = Box::<PeerState>::default();
        peer.blocks = vec![part];
        let found = ClusterRanges::default().of(&world, &[], &BTreeMap::from([("n2".into(), peer)]));
        assert!(found.contains(&part) && found.len() == 3, "{found:?}");
    }

    #[test]
    fn a_node_in_a_pool_is_a_node_unless_it_may_be_a_pod() {
        let check = |pools: &str, blocks: &str, wanted: &str| {
            let mut world = world(pools, blocks);
            let addresses = PerFamily::first_of(["192.0.2.77".parse().unwrap()]);
            let advert = Arc::new(Advert { addresses, ..Advert::default() });
            let at = Instant::now();
            world.adverts.insert("n2".into(), Heard { advert, at, sends_changed: at });
            let found = ClusterRanges::default().nodes_in_pools(&world);
            let wanted: BTreeSet<IpAddr> = wanted.split_whitespace().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(found, wanted, "pools {pools}, blocks {blocks}");
        };
        check("10.1.0.0/16", "", "");
        check("192.0.2.0/24", "", "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.77");
        check("192.0.2.0/28 2001:db8::/120", "", "192.0.2.1 192.0.2.2 192.0.2.3 2001:db8::1 2001:db8::2 2001:db8::3");
        // Who says that a pod's address is its own opens nothing.
        check("192.0.2.0/24", "n3=192.0.2.64/26 n1=192.0.2.2/31", "192.0.2.1");
        check("10.244.0.0/16", "", "");
    }
}
