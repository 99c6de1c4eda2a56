//! The world of node n1, built in a few words.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tartan_model::{
    Advert, Attachment, Block, Condition, Features, Holder, Kind, Node, NodeNetwork, Object, ObjectId, Part, PerFamily,
    Pool, Reservation, Selector, StoreEvent, World,
};
use tartan_netstate::{Mac, PodNetns};

/// What n1 knows, and the time.
pub(crate) struct Setup {
    pub world: World,
    pub now: Instant,
    puts: u32,
}

/// An object under construction.
pub(crate) struct Put(Object);

// === impl Setup ===

impl Setup {
    /// A world of these nodes, all lists complete.
    pub(crate) fn new(nodes: impl IntoIterator<Item = Put>) -> Setup {
        let mut setup = Setup::unsynced([]);
        for kind in Kind::ALL {
            setup.world.store(StoreEvent::Init(kind), setup.now);
            setup.world.store(StoreEvent::Synced(kind), setup.now);
        }
        nodes.into_iter().for_each(|node| setup.put(node));
        setup.puts = 1;
        setup
    }

    pub(crate) fn unsynced(nodes: impl IntoIterator<Item = Put>) -> Setup {
        let world = World::new("n1".into(), Features { ipv6: true, ..Features::default() });
        let mut setup = Setup { world, now: Instant::now(), puts: 1 };
        nodes.into_iter().for_each(|node| setup.put(node));
        setup
    }

    /// What an earlier life knew.
    pub(crate) fn recalled(objects: impl IntoIterator<Item = Put>) -> Setup {
        let mut setup = Setup::unsynced([]);
        let objects = objects.into_iter().map(|Put(object)| (id_of(&object), object)).collect();
        setup.world.recall(objects, setup.now);
        setup
    }

    /// The store holds just these.
    pub(crate) fn list(&mut self, objects: impl IntoIterator<Item = Put>) {
        Kind::ALL.into_iter().for_each(|kind| self.world.store(StoreEvent::Init(kind), self.now));
        objects.into_iter().for_each(|object| self.put(object));
        Kind::ALL.into_iter().for_each(|kind| self.world.store(StoreEvent::Synced(kind), self.now));
    }

    /// Revisions count up from 2 on.
    pub(crate) fn put(&mut self, Put(object): Put) {
        self.puts += 1;
        let revision = u128::from(self.puts).into();
        self.world.store(StoreEvent::Put(id_of(&object), object, revision), self.now);
    }

    pub(crate) fn invalid_block(&mut self, range: &str) {
        let id = ObjectId { kind: Kind::IpBlock, name: Block::name_of(&net(range)).into() };
        let condition = Condition {
            about: id.to_string(),
            field: String::new(),
            reason: "BadSyntax",
            message: "garbage".into(),
            fix: "mend it".into(),
        };
        self.world.store(StoreEvent::Invalid(id, condition.into()), self.now);
    }

    pub(crate) fn attach(&mut self, name: &str, addresses: &str) {
        self.world.attach(Attachment {
            id: name.into(),
            container: name.into(),
            ifname: "eth0".into(),
            netns: PodNetns { dev: 0, ino: 0, path: "/".into() },
            pod_namespace: "ns".into(),
            pod_name: name.into(),
            addresses: first_of(addresses),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            ports: Vec::new(),
            limits: Default::default(),
            network: None,
            answered: true,
        });
    }

    pub(crate) fn detach(&mut self, name: &str) {
        self.world.detach(name, self.now);
    }
}

fn id_of(object: &Object) -> ObjectId {
    let (kind, name) = match object {
        Object::Node(node) => (Kind::Node, node.name.clone()),
        Object::Pool(pool) => (Kind::IpPool, pool.name.clone()),
        Object::Reservation(reservation) => (Kind::IpReservation, reservation.name.clone()),
        Object::Block(block) => (Kind::IpBlock, Block::name_of(&block.cidr).into()),
        Object::NodeNetwork(network) => (Kind::NodeNetwork, network.advert.node.clone()),
        Object::Config(_) => (Kind::NetworkConfig, "default".into()),
        Object::Namespace(_) | Object::Pod(_) | Object::Flannel(_) | Object::Policy(_) => {
            panic!("allocation reads none of these")
        }
    };
    ObjectId { kind, name }
}

// === impl Put ===

impl Put {
    pub(crate) fn uid(mut self, to: &str) -> Put {
        match &mut self.0 {
            Object::Node(node) => Arc::make_mut(node).uid = to.into(),
            Object::Block(block) => Arc::make_mut(block).node_uid = to.into(),
            Object::NodeNetwork(network) => Arc::make_mut(&mut network.advert).node_uid = to.into(),
            _ => panic!("it has no uid"),
        }
        self
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Put {
        let Object::Node(node) = &mut self.0 else { panic!("only nodes have labels here") };
        Arc::make_mut(node).labels.insert(key.into(), value.into());
        self
    }

    pub(crate) fn nodes(self, selector: &str) -> Put {
        self.of_pool(|pool| pool.nodes = selector.parse().expect("tests write good values"))
    }

    pub(crate) fn namespaces(self, selector: &str) -> Put {
        self.of_pool(|pool| pool.namespaces = selector.parse().expect("tests write good values"))
    }

    pub(crate) fn disabled(self) -> Put {
        self.of_pool(|pool| pool.disabled = true)
    }

    pub(crate) fn own(mut self, addresses: &str) -> Put {
        let Object::NodeNetwork(NodeNetwork { advert, .. }) = &mut self.0 else { panic!("only adverts have it") };
        Arc::make_mut(advert).fabric_addresses = first_of(addresses);
        self
    }

    fn of_pool(mut self, change: impl FnOnce(&mut Pool)) -> Put {
        let Object::Pool(pool) = &mut self.0 else { panic!("this is no pool") };
        change(Arc::make_mut(pool));
        self
    }
}

pub(crate) fn node(name: &str, pod_cidrs: &str) -> Put {
    Put(Object::Node(
        Node {
            name: name.into(),
            uid: uid_of(name),
            internal_ips: Vec::new(),
            external_ips: Vec::new(),
            pod_cidrs: nets(pod_cidrs),
            labels: Default::default(),
            annotations: Default::default(),
            placement: Default::default(),
        }
        .into(),
    ))
}

pub(crate) fn pool(name: &str, cidr: &str, block_size: u8) -> Put {
    let (nodes, namespaces) = (Selector::all(), Selector::all());
    Put(Object::Pool(
        Pool {
            name: name.into(),
            cidr: net(cidr),
            block_size,
            nodes,
            namespaces,
            disabled: false,
            encapsulation: None,
        }
        .into(),
    ))
}

pub(crate) fn reservation(name: &str, cidrs: &str) -> Put {
    Put(Object::Reservation(Reservation { name: name.into(), cidrs: nets(cidrs) }.into()))
}

pub(crate) fn block(cidr: &str, pool: &str, node: &str) -> Put {
    let (pool, node_uid) = (pool.into(), uid_of(node));
    Put(Object::Block(Block { cidr: net(cidr), pool, node: node.into(), node_uid, parts: Vec::new() }.into()))
}

/// The block with one part.
pub(crate) fn given(mut block: Put, cidr: &str, holder: Holder) -> Put {
    let Object::Block(given) = &mut block.0 else { panic!("only blocks have parts") };
    Arc::make_mut(given).parts.push(Part { cidr: net(cidr), holder });
    block
}

pub(crate) fn advert(node: &str, blocks: &str) -> Put {
    Put(Object::from(Advert {
        node: node.into(),
        node_uid: uid_of(node),
        blocks: nets(blocks),
        mtu: 1500,
        ..Advert::default()
    }))
}

fn net(text: &str) -> IpNet {
    text.parse().expect("tests write good values")
}

fn nets(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(net).collect()
}

fn first_of(addresses: &str) -> PerFamily<IpAddr> {
    PerFamily::first_of(addresses.split_whitespace().map(|ip| ip.parse().expect("tests write good values")))
}

fn uid_of(name: &str) -> Arc<str> {
    format!("uid-{name}").into()
}
