//! The snapshot: written and read, cut, damaged, and of other formats.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use proptest::prelude::*;
use tartan_model::{
    Config, Features, Heard, NamedPort, Namespace, Node, PerFamily, Pod, PolicyText, Pool, Protocol, Reservation,
    Selector,
};

use super::*;

struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tartan-snapshot-{}-{number}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Dir(dir)
    }

    fn file(&self) -> PathBuf {
        self.0.join(FILE)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _best_effort = fs::remove_dir_all(&self.0);
    }
}

/// One object of each kind.
fn world() -> World {
    let mut world = World::new("n1".into(), Features::default());
    let node = Node {
        name: "n1".into(),
        uid: "u1".into(),
        internal_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        external_ips: Vec::new(),
        pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()],
        labels: BTreeMap::from([("zone".to_owned(), "a \"quoted\" one\n".to_owned())]),
        annotations: BTreeMap::new(),
        placement: Default::default(),
    };
    let advert = Advert {
        node: "n1".into(),
        node_uid: "u1".into(),
        addresses: PerFamily { v4: Some("192.0.2.1".parse().unwrap()), v6: None },
        fabric_addresses: PerFamily::default(),
        blocks: vec!["10.1.0.0/24".parse().unwrap()],
        mtu: 1450,
        accepts: Vec::new(),
        sends: vec!["vxlan/ipv4/vni1/port8472".into()],
        joining: false,
        leaving: [].into(),
        acknowledges: None,
        edition: 7,
        heartbeat: 99,
    };
    let pool = Pool {
        name: "p".into(),
        cidr: "10.0.0.0/16".parse().unwrap(),
        block_size: 26,
        nodes: Selector::parse("zone == 'a'").unwrap(),
        namespaces: Selector::all(),
        disabled: false,
        encapsulation: None,
    };
    let block = Block {
        cidr: "10.0.0.0/26".parse().unwrap(),
        pool: "p".into(),
        node: "n1".into(),
        node_uid: "u1".into(),
        parts: Vec::new(),
    };
    let at = Instant::now();
    world.config = std::sync::Arc::new(Config { masquerade: false, ..Config::default() });
    world.nodes.insert("n1".into(), node.into());
    world.adverts.insert("n1".into(), Heard { advert: advert.into(), at, sends_changed: at });
    world.pools.insert("p".into(), pool.into());
    world.reservations.insert("r".into(), Reservation { name: "r".into(), cidrs: Vec::new() }.into());
    world.blocks.insert(block.cidr, block.into());
    let labels = |label: (&'static str, &'static str)| [label].into_iter().collect();
    world.namespaces.insert(
        "shop".into(),
        Namespace { name: "shop".into(), labels: labels(("kubernetes.io/metadata.name", "shop")) }.into(),
    );
    let pod = Pod {
        uid: 7,
        node: "n1".into(),
        labels: labels(("app", "web")),
        service_account: "default".into(),
        addresses: ["10.0.0.1".parse().unwrap()].into(),
        ports: [NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }].into(),
        host_network: false,
        finished: false,
    };
    world.pods.insert("shop/web".into(), pod.into());
    // What a YAML parser would not take.
    let policy = PolicyText { json: "{\"spec\":{\"note\":\"\u{7f}\"}}".into() };
    world.policies.insert(ObjectId { kind: Kind::NetworkPolicy, name: "shop/p".into() }, policy.into());
    world
}

fn saved(dir: &Dir) -> Vec<u8> {
    save(&dir.file(), &world()).unwrap();
    fs::read(dir.file()).unwrap()
}

#[test]
fn what_is_saved_is_recalled_but_for_heartbeats() {
    let dir = Dir::new();
    fs::write(dir.file().with_extension("json.next"), "left by a crash").unwrap();
    saved(&dir);
    assert_eq!(fs::metadata(dir.file()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1, "something is left beside it");
    let (before, mut after) = (world(), World::new("n1".into(), Features::default()));
    after.recall(load(&dir.file(), "n1").unwrap().unwrap(), Instant::now());
    assert_eq!(after.config, before.config);
    assert_eq!(after.nodes, before.nodes);
    assert_eq!(after.pools, before.pools);
    assert_eq!(after.reservations, before.reservations);
    assert_eq!(after.blocks, before.blocks);
    assert_eq!(after.namespaces, before.namespaces);
    assert_eq!(after.pods, before.pods);
    assert_eq!(after.policies, before.policies);
    let (before, after) = (&before.adverts["n1"].advert, &after.adverts["n1"].advert);
    assert!(before.same_but_heartbeat(after) && before.edition == after.edition && after.heartbeat == 0, "{after:?}");
    assert!(load(&dir.0.join("not there"), "n1").unwrap().is_none());
}

#[test]
fn every_truncation_point_and_every_flipped_byte_is_refused() {
    let dir = Dir::new();
    let whole = saved(&dir);
    for end in 0..whole.len() {
        let why = decode_all(&whole[..end], &dir.file()).map(|(_, it)| it.len());
        assert!(why.is_err(), "cut at {end}: {why:?}");
    }
    for at in 0..whole.len() {
        for flip in [1, 0x20, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            assert!(decode_all(&bytes, &dir.file()).is_err(), "byte {at} flipped by {flip}");
        }
    }
}

#[test]
fn what_is_refused_is_named_with_its_cause() {
    let dir = Dir::new();
    let whole = String::from_utf8(saved(&dir)).unwrap();
    let end = "it is not used, and the next one takes its place";
    let table = [
        (whole.replace("\"format\":2", "\"format\":3"), "the snapshot has format 3, this build reads 2 only"),
        (whole.replace("\"format\":2", "\"format\":0"), "the snapshot has format 0, this build reads 2 only"),
        (whole.replace("10.0.0.0/26", "10.0.0.0/25"), "torn or damaged: its lines do not match its checksum"),
        (whole.lines().next().unwrap().to_owned() + "\n", "torn or damaged: it has one line only"),
        (whole[..whole.len() - 1].to_owned(), "torn or damaged: its last line does not end"),
        (String::new(), "torn or damaged: its first line does not end"),
        ("tartan-journal 1\n".into(), "this is not a snapshot of Tartan"),
        (whole.replace("\"kind\":\"Snapshot\"", "\"kind\":\"Journal\""), "this is not a snapshot of Tartan"),
    ];
    for (text, why) in table {
        fs::write(dir.file(), &text).unwrap();
        let said = load(&dir.file(), "n1").unwrap_err().to_string();
        assert_eq!(said, format!("{}: {why}; {end}", dir.file().display()));
    }
    saved(&dir);
    let said = load(&dir.file(), "n2").unwrap_err().to_string();
    assert_eq!(said, format!("{}: the snapshot is of node n1, this is n2; {end}", dir.file().display()));
}

proptest! {
    #[test]
    fn random_bytes_are_refused_and_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), header: bool) {
        if header {
            let dir = Dir::new();
            let mut whole = saved(&dir);
            whole.truncate(whole.iter().position(|byte| *byte == b'\n').unwrap() + 1);
            whole.append(&mut bytes);
            bytes = whole;
        }
        prop_assert!(decode_all(&bytes, Path::new("random")).is_err());
    }
}
