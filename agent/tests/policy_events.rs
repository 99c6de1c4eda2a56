//! Policy, whatever way the store's words come: one by one or many at once, lists that begin again, are cut off, come
//! backwards or kind after kind, and agents that start anew with a snapshot that is behind.
//!
//! Law: at every plan each pod may do what it may in the cluster as it was before the last change, or as it is after it.
//! There is no third cluster in between, in which something is open, or shut, that is neither before nor after.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;
use tartan_agent::plan::{Plan, Planners};
use tartan_model::workload::NAMESPACE_NAME_LABEL;
use tartan_model::{
    Attachment, Features, Host, Kind, Labels, Namespace, Node, Object, ObjectId, PerFamily, Pod, PolicyText,
    Programmed, StoreEvent, World,
};
use tartan_netstate::{Key, Mac, PodNetns, State};
use tartan_policy::ir::Direction;
use tartan_policy::walk::{Packet, Verdict};

/// All objects there are.
type Cluster = BTreeMap<ObjectId, Object>;
/// What every pod of the node may do: for each packet of a matrix its verdict; none where the pod has no connections.
type Picture = Vec<Option<Verdict>>;

/// Name, node, last byte of its addresses.
const PODS: [(&str, &str, u8); 6] = [
    ("shop/a", "n1", 1),
    ("shop/b", "n1", 2),
    ("bank/c", "n1", 3),
    ("shop/x", "n2", 4),
    ("bank/y", "n2", 5),
    ("bank/z", "n2", 6),
];
/// Of these, n1's; they are attached.
const LOCAL: usize = 3;
const REMOTES: [&str; 10] = [
    "10.0.1.1",
    "10.0.1.2",
    "10.0.1.3",
    "10.0.1.4",
    "10.0.1.5",
    "fd00::4",
    "10.0.1.77",
    "192.0.2.1",
    "192.0.2.2",
    "203.0.113.9",
];
const POLICIES: [&str; 6] = [
    r#"{"spec":{"podSelector":{}}}"#,
    r#"{"spec":{"podSelector":{"matchLabels":{"app":"x"}},"ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"y"}}}]}]}}"#,
    r#"{"spec":{"podSelector":{},"ingress":[{"from":[{"namespaceSelector":{"matchLabels":{"team":"y"}}}],"ports":[{"port":80}]}]}}"#,
    r#"{"spec":{"podSelector":{},"policyTypes":["Egress"],"egress":[{"to":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.0.1.4/32"]}}]}]}}"#,
    r#"{"spec":{"podSelector":{"matchLabels":{"app":"y"}},"policyTypes":["Ingress","Egress"],"ingress":[{}],"egress":[{"ports":[{"port":80}]}]}}"#,
    r#"{"spec":{"podSelector":{"matchLabels":{"colour":7}}}}"#,
];
const LABELS: [&str; 3] = ["x", "y", "z"];

fn id(kind: Kind, name: &str) -> ObjectId {
    ObjectId { kind, name: name.into() }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

fn namespace(name: &str, team: &str) -> Object {
    let labels = labels(&[(NAMESPACE_NAME_LABEL, name), ("team", team)]);
    Object::Namespace(Namespace { name: name.into(), labels }.into())
}

fn addresses(at: u8) -> [IpAddr; 2] {
    [IpAddr::from([10, 0, 1, at]), format!("fd00::{at}").parse().unwrap()]
}

fn pod(index: usize, app: &str) -> Object {
    let (_, node, at) = PODS[index];
    Object::Pod(
        Pod {
            uid: 0,
            node: node.into(),
            labels: labels(&[("app", app)]),
            service_account: "default".into(),
            addresses: addresses(at).into(),
            ports: Box::default(),
            host_network: false,
            finished: false,
        }
        .into(),
    )
}

fn policy(text: &str) -> Object {
    Object::Policy(PolicyText { json: text.into() }.into())
}

/// Two nodes, their pods, and no policy.
fn first() -> Cluster {
    let node = |name: &str, at: u8| {
        Object::Node(
            Node {
                name: name.into(),
                uid: name.into(),
                internal_ips: vec![IpAddr::from([192, 0, 2, at])],
                external_ips: Vec::new(),
                pod_cidrs: vec![format!("10.0.{at}.0/24").parse().unwrap(), format!("fd00:{at}::/64").parse().unwrap()],
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                placement: Default::default(),
            }
            .into(),
        )
    };
    let nodes = [("n1", 1), ("n2", 2)].map(|(name, at)| (id(Kind::Node, name), node(name, at)));
    let namespaces = ["shop", "bank"].map(|name| (id(Kind::Namespace, name), namespace(name, "x")));
    let pods = (0..PODS.len()).map(|index| (id(Kind::Pod, PODS[index].0), pod(index, LABELS[index % 2])));
    nodes.into_iter().chain(namespaces).chain(pods).collect()
}

/// One object that comes, goes or becomes another.
#[derive(Clone, Debug)]
enum Change {
    Nothing,
    Policy {
        place: usize,
        text: Option<usize>,
    },
    Pod {
        index: usize,
        label: usize,
    },
    /// Only of other nodes: those of this one go by DEL.
    PodGone {
        index: usize,
    },
    Namespace {
        shop: bool,
        label: usize,
    },
}

/// What happens; the change happens unseen where the store is not heard meanwhile.
#[derive(Clone, Debug)]
enum Step {
    Seen(Change),
    Relist {
        change: Change,
        cut_off: bool,
        order: Order,
    },
    /// `remembers`: there is a snapshot. `late`: one more change came after it.
    Restart {
        remembers: bool,
        late: Change,
        change: Change,
        order: Order,
    },
}

/// How lists come: which kind's next word is next, backwards or not, and after how many words there is a plan.
#[derive(Clone, Debug)]
struct Order {
    seed: u64,
    reversed: bool,
    squashed: usize,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => Just(Change::Nothing),
        4 => (0..3usize, prop::option::weighted(0.8, 0..POLICIES.len()))
            .prop_map(|(place, text)| Change::Policy { place, text }),
        3 => (0..PODS.len(), 0..LABELS.len()).prop_map(|(index, label)| Change::Pod { index, label }),
        1 => (LOCAL..PODS.len()).prop_map(|index| Change::PodGone { index }),
        2 => (any::<bool>(), 0..LABELS.len()).prop_map(|(shop, label)| Change::Namespace { shop, label }),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    (any::<u64>(), any::<bool>(), 1..8usize).prop_map(|(seed, reversed, squashed)| Order { seed, reversed, squashed })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => change().prop_map(Step::Seen),
        2 => (change(), any::<bool>(), order())
            .prop_map(|(change, cut_off, order)| Step::Relist { change, cut_off, order }),
        2 => (prop::bool::weighted(0.8), change(), change(), order())
            .prop_map(|(remembers, late, change, order)| Step::Restart { remembers, late, change, order }),
    ]
}

/// The object that is changed, and what it becomes.
fn effect(change: &Change) -> Option<(ObjectId, Option<Object>)> {
    Some(match change {
        Change::Nothing => return None,
        Change::Policy { place, text } => {
            let name = ["shop/p", "shop/q", "bank/p"][*place];
            (id(Kind::NetworkPolicy, name), text.map(|text| policy(POLICIES[text])))
        }
        Change::Pod { index, label } => (id(Kind::Pod, PODS[*index].0), Some(pod(*index, LABELS[*label]))),
        Change::PodGone { index } => (id(Kind::Pod, PODS[*index].0), None),
        Change::Namespace { shop, label } => {
            let name = if *shop { "shop" } else { "bank" };
            (id(Kind::Namespace, name), Some(namespace(name, LABELS[*label])))
        }
    })
}

fn changed(cluster: &Cluster, change: &Change) -> Cluster {
    let mut cluster = cluster.clone();
    match effect(change) {
        Some((id, Some(object))) => drop(cluster.insert(id, object)),
        Some((id, None)) => drop(cluster.remove(&id)),
        None => {}
    }
    cluster
}

fn put(id: &ObjectId, object: &Object) -> StoreEvent {
    let revision = tartan_store::decode::revision(id, object);
    StoreEvent::Put(id.clone(), object.clone(), revision)
}

/// Every kind's list of the cluster, each in its own order, mixed.
fn lists(cluster: &Cluster, order: &Order) -> Vec<StoreEvent> {
    let mut lists: Vec<Vec<StoreEvent>> = Vec::new();
    for kind in Kind::ALL {
        let mut puts: Vec<StoreEvent> =
            cluster.iter().filter(|(id, _)| id.kind == kind).map(|(id, object)| put(id, object)).collect();
        if order.reversed {
            puts.reverse();
        }
        // Backwards as well, since words are taken from the end.
        let words = std::iter::once(StoreEvent::Init(kind)).chain(puts).chain([StoreEvent::Synced(kind)]);
        lists.push(words.collect::<Vec<_>>().into_iter().rev().collect());
    }
    let mut random = order.seed | 1;
    let mut words = Vec::new();
    while lists.iter().any(|list| !list.is_empty()) {
        // Marsaglia's xorshift64.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let left: Vec<usize> = (0..lists.len()).filter(|at| !lists[*at].is_empty()).collect();
        words.extend(lists[left[(random % left.len() as u64) as usize]].pop());
    }
    words
}

/// An agent of n1: what it knows, and its planners.
struct Agent {
    world: World,
    planners: Planners,
}

impl Agent {
    /// It starts, and finds this in the kernel.
    fn new(recalled: Option<&Cluster>, found: State) -> Agent {
        let now = Instant::now();
        let mut world = World::new("n1".into(), Features { ipv6: true, vxlan: true, nft: true, wireguard: true });
        for (name, _, at) in &PODS[..LOCAL] {
            let (namespace, pod) = name.split_once('/').unwrap();
            world.attach(Attachment {
                id: Attachment::id_of(pod, "eth0"),
                container: pod.into(),
                ifname: "eth0".into(),
                netns: PodNetns { dev: 4, ino: u64::from(*at), path: format!("/run/netns/{pod}").into() },
                pod_namespace: namespace.into(),
                pod_name: pod.into(),
                addresses: PerFamily::first_of(addresses(*at)),
                mac: Mac([2, 0, 0, 0, 0, *at]),
                ports: Vec::new(),
                limits: Default::default(),
                network: None,
                answered: true,
            });
        }
        if let Some(recalled) = recalled {
            world.recall(recalled.iter().map(|(id, object)| (id.clone(), object.clone())).collect(), now);
        }
        let read = Programmed { mirror: found, read: true, ..Programmed::default() };
        world.programmed(read, Arc::new(Host::default()), now);
        Agent { world, planners: Planners::default() }
    }

    fn hear(&mut self, event: StoreEvent) {
        self.world.store(event, Instant::now());
    }

    /// What its pods may do now; none while nothing is planned, and the kernel keeps what it has. Else the kernel does as
    /// it is told.
    fn picture(&mut self) -> Option<Picture> {
        let Plan { state, policy, .. } = self.planners.plan(&self.world, Instant::now());
        assert_eq!(state.is_some(), policy.is_some(), "never a plan without policy");
        let tables = policy?.tables;
        let programmed = Programmed { mirror: state?, ..self.world.programmed.clone() };
        self.world.programmed(programmed, Arc::new(Host::default()), Instant::now());
        let mut picture = Picture::new();
        for (name, _, at) in &PODS[..LOCAL] {
            for remote in REMOTES {
                let remote: IpAddr = remote.parse().unwrap();
                let own = addresses(*at)[usize::from(remote.is_ipv6())];
                for direction in [Direction::Ingress, Direction::Egress] {
                    for destination in [80, 443] {
                        let packet = Packet { protocol: 6, source_port: 40_000, destination };
                        let decision = tables.lookup(name, direction, own, remote, &packet);
                        picture.push(decision.map(|decision| decision.verdict));
                    }
                }
            }
        }
        Some(picture)
    }
}

/// Of what the kernel holds, what is policy's.
fn of_policy(state: &State) -> BTreeMap<Key, tartan_netstate::Object> {
    let all = state.iter().filter(|(key, _)| key.is_of_policy());
    all.map(|(key, entry)| (key.clone(), entry.object.clone())).collect()
}

/// What pods may do in this cluster, for one who has read it all.
fn picture_of(cluster: &Cluster) -> Picture {
    let mut agent = Agent::new(None, State::new());
    for word in lists(cluster, &Order { seed: 1, reversed: false, squashed: 1 }) {
        agent.hear(word);
    }
    agent.picture().unwrap()
}

/// Plays words, and looks at what pods may do after each few of them; `may` are the pictures there may be.
fn play(agent: &mut Agent, words: Vec<StoreEvent>, order: &Order, may: &[Option<&Picture>]) {
    for few in words.chunks(order.squashed) {
        few.iter().cloned().for_each(|word| agent.hear(word));
        let now = agent.picture();
        assert!(may.contains(&now.as_ref()), "a third cluster, after {few:?}");
    }
}

fn run(steps: &[Step]) {
    let mut cluster = first();
    let mut agent = Agent::new(None, State::new());
    let whole = Order { seed: 7, reversed: false, squashed: 1 };
    let all = picture_of(&cluster);
    play(&mut agent, lists(&cluster, &whole), &whole, &[None, Some(&all)]);
    for step in steps {
        let before = picture_of(&cluster);
        assert_eq!(agent.picture().as_ref(), Some(&before));
        match step {
            Step::Seen(change) => {
                let after = changed(&cluster, change);
                match effect(change) {
                    Some((id, Some(object))) => agent.hear(put(&id, &object)),
                    Some((id, None)) => agent.hear(StoreEvent::Delete(id)),
                    None => {}
                }
                cluster = after;
            }
            Step::Relist { change, cut_off, order } => {
                cluster = changed(&cluster, change);
                let after = picture_of(&cluster);
                let mut words = lists(&cluster, order);
                if *cut_off {
                    let mut cut = words[..words.len() / 2].to_vec();
                    cut.push(StoreEvent::Away(None, "cut off".into()));
                    cut.append(&mut words);
                    words = cut;
                }
                words.insert(0, StoreEvent::Away(None, "gone".into()));
                play(&mut agent, words, order, &[Some(&before), Some(&after)]);
            }
            Step::Restart { remembers, late, change, order } => {
                let snapshot = cluster.clone();
                cluster = changed(&changed(&cluster, late), change);
                let after = picture_of(&cluster);
                let held = agent.world.programmed.mirror.clone();
                agent = Agent::new(remembers.then_some(&snapshot), held.clone());
                let known = remembers.then_some(&before);
                let mut words = lists(&cluster, order);
                let last = words.pop().unwrap();
                // Until the last word the rest may be anything: it is as it was, whatever has been heard.
                play(&mut agent, words, order, &[known]);
                assert_eq!(of_policy(&agent.world.programmed.mirror), of_policy(&held), "the kernel's was touched");
                play(&mut agent, vec![last], order, &[Some(&after)]);
            }
        }
        assert_eq!(agent.picture().as_ref(), Some(&picture_of(&cluster)), "after {step:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn pods_may_do_what_they_might_before_or_may_after(steps in vec(step(), 1..8)) {
        run(&steps);
    }
}

/// As a store that is away for a kind only, e.g. for want of a right: nothing is planned anew on the rest.
#[test]
fn while_one_kind_cannot_be_read_policy_is_what_it_was() {
    let mut denied = first();
    denied.insert(id(Kind::NetworkPolicy, "shop/p"), policy(POLICIES[0]));
    let (shut, open) = (picture_of(&denied), picture_of(&first()));
    assert_ne!(shut, open);
    for kind in Kind::ALL {
        for (remembered, known) in [(None, None), (Some(&denied), Some(&shut))] {
            let mut agent = Agent::new(remembered, State::new());
            let order = Order { seed: 3, reversed: false, squashed: 1 };
            let heard = |word: &StoreEvent| match word {
                StoreEvent::Init(of) | StoreEvent::Synced(of) => *of != kind,
                StoreEvent::Put(of, ..) => of.kind != kind,
                _ => true,
            };
            let words: Vec<StoreEvent> = lists(&first(), &order).into_iter().filter(heard).collect();
            play(&mut agent, words, &order, &[known]);
            agent.hear(StoreEvent::Away(Some(kind), "forbidden".into()));
            assert_eq!(agent.picture().as_ref(), known, "{kind}");
        }
    }
}
