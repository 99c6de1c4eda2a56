//! A cluster of many nodes, as the store tells of it.
#![allow(dead_code, unreachable_pub, reason = "each example uses its own part")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tartan_model::{Advert, Endpoint, Kind, Node, Object, ObjectId, PerFamily, StoreEvent, World};
use tartan_netstate::Mac;

pub fn put(id: ObjectId, object: Object) -> StoreEvent {
    StoreEvent::Put(id, object, 1.into())
}

pub fn node(name: &str, address: &str, ranges: &[&str]) -> Node {
    Node {
        name: name.into(),
        uid: format!("uid of {name}").into(),
        internal_ips: vec![address.parse().expect("an address")],
        external_ips: Vec::new(),
        pod_cidrs: ranges.iter().map(|range| range.parse().expect("a prefix")).collect(),
        labels: Default::default(),
        annotations: Default::default(),
        placement: Default::default(),
    }
}

pub fn ip(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    Ipv4Addr::new(a, b, c, d).into()
}

/// The local node, and so many elsewhere.
pub fn fill(world: &mut World, peers: u16, now: Instant) {
    let local = node("local", "172.30.0.1", &["10.127.0.0/24", "fd00:10:244:1::/64"]);
    world.store(put(ObjectId { kind: Kind::Node, name: local.name.clone() }, Object::Node(local.into())), now);
    for number in 1..=peers {
        let peer = Peer { number, generation: 0 };
        let id = ObjectId { kind: Kind::Node, name: peer.name() };
        world.store(put(id, Object::Node(peer.node().into())), now);
        world.store(put(peer.object_id(), Object::from(peer.advert())), now);
    }
}

/// A node elsewhere.
pub struct Peer {
    pub number: u16,
    /// How often it moved to another address.
    pub generation: u8,
}

impl Peer {
    pub fn name(&self) -> Arc<str> {
        format!("p{}", self.number).into()
    }

    pub fn object_id(&self) -> ObjectId {
        ObjectId { kind: Kind::NodeNetwork, name: self.name() }
    }

    fn ranges(&self) -> [String; 2] {
        let [high, low] = self.number.to_be_bytes();
        [format!("10.{}.{low}.0/24", 128 + high), format!("fd00:20:{:x}::/64", self.number)]
    }

    fn address(&self) -> IpAddr {
        let [high, low] = self.number.to_be_bytes();
        ip(172, 29 - self.generation, high, low)
    }

    pub fn node(&self) -> Node {
        let ranges = self.ranges();
        node(&self.name(), &self.address().to_string(), &[&ranges[0], &ranges[1]])
    }

    pub fn advert(&self) -> Advert {
        let [high, low] = self.number.to_be_bytes();
        let instance: Arc<str> = "vxlan/ipv4/vni1/port8472".into();
        let mac = Mac([2, 29, 0, self.generation, high, low]);
        let blocks: Vec<IpNet> = self.ranges().iter().map(|range| range.parse().expect("a prefix")).collect();
        let fabric_address = |block: &IpNet| Some(block.addr());
        Advert {
            node: self.name(),
            node_uid: format!("uid of {}", self.name()).into(),
            addresses: PerFamily { v4: Some(self.address()), v6: None },
            fabric_addresses: PerFamily { v4: fabric_address(&blocks[0]), v6: fabric_address(&blocks[1]) },
            blocks,
            mtu: 1450,
            accepts: vec![Endpoint {
                instance: instance.clone(),
                address: self.address(),
                mac: Some(mac),
                public_key: None,
            }],
            sends: vec![instance],
            joining: false,
            leaving: [].into(),
            acknowledges: None,
            edition: 1 + u64::from(self.generation),
            heartbeat: 1,
        }
    }
}
