//! What the operator wants, as tables; and the whole of it on the store in memory.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tartan_model::{
    Advert, Block, Condition, Config, Family, Features, Holder, Kind, Node, NodeCondition, NodeNetwork, Object,
    ObjectId, Part, PolicyText, Pool, Revision, Selector, StoreEvent, World,
};
use tartan_store::{Expect, MemoryStore, Store, Word};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::plan::{Memo, PATIENCE, Plan, plan};
use super::{operate, serve};

const LEASE: Duration = Duration::from_secs(40);
const COOLDOWN: Duration = Duration::from_secs(30);

fn id(kind: Kind, name: &str) -> ObjectId {
    ObjectId { kind, name: name.into() }
}

fn node(name: &str, ips: &[&str], pod_cidrs: &[&str]) -> (ObjectId, Object) {
    let node = Node {
        name: name.into(),
        uid: format!("uid of {name}").into(),
        internal_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        external_ips: Vec::new(),
        pod_cidrs: pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        placement: Default::default(),
    };
    (id(Kind::Node, name), Object::Node(node.into()))
}

fn network(name: &str) -> (ObjectId, Object) {
    let advert = Advert {
        node: name.into(),
        node_uid: format!("uid of {name}").into(),
        addresses: Default::default(),
        fabric_addresses: Default::default(),
        blocks: Vec::new(),
        mtu: 1450,
        accepts: Vec::new(),
        sends: Vec::new(),
        joining: false,
        leaving: [].into(),
        acknowledges: None,
        edition: 1,
        heartbeat: 1,
    };
    (id(Kind::NodeNetwork, name), Object::from(advert))
}

fn pool(name: &str, cidr: &str, nodes: &str) -> (ObjectId, Object) {
    let pool = Pool {
        name: name.into(),
        cidr: cidr.parse().unwrap(),
        block_size: 26,
        nodes: Selector::parse(nodes).unwrap(),
        namespaces: Selector::all(),
        disabled: false,
        encapsulation: None,
    };
    (id(Kind::IpPool, name), Object::Pool(pool.into()))
}

fn block(cidr: &str, owner: &str, holder: Option<(&str, &str)>) -> (ObjectId, Object) {
    let part = |(cidr, node): (&str, &str)| Part {
        cidr: cidr.parse().unwrap(),
        holder: Holder::Node { name: node.into(), uid: format!("uid of {node}").into() },
    };
    let block = Block {
        cidr: cidr.parse().unwrap(),
        pool: "p".into(),
        node: owner.into(),
        node_uid: format!("uid of {owner}").into(),
        parts: holder.map(part).into_iter().collect(),
    };
    (id(Kind::IpBlock, &Block::name_of(&block.cidr)), Object::Block(block.into()))
}

fn policy(name: &str, json: &str) -> (ObjectId, Object) {
    (id(Kind::NetworkPolicy, name), Object::Policy(PolicyText { json: json.into() }.into()))
}

/// All of this was listed at that time.
fn world(objects: &[(ObjectId, Object)], at: Instant) -> World {
    let mut world = World::new("".into(), Features::default());
    world.config = Config { lease: LEASE, cooldown: COOLDOWN, ..Config::default() }.into();
    list(&mut world, objects, at);
    world
}

fn list(world: &mut World, objects: &[(ObjectId, Object)], at: Instant) {
    for kind in Kind::ALL {
        world.store(StoreEvent::Init(kind), at);
        for (id, object) in objects.iter().filter(|(id, _)| id.kind == kind) {
            world.store(StoreEvent::Put(id.clone(), object.clone(), Revision::from(7)), at);
        }
        world.store(StoreEvent::Synced(kind), at);
    }
}

fn planned(world: &World, since: Option<Instant>, service: Option<IpAddr>, now: Instant) -> Plan {
    let since = since.map(|at| Family::ALL.map(|family| (family, at)).into()).unwrap_or_default();
    plan(&mut Memo::default(), world, &since, service, now)
}

/// What is to be written, as lines.
fn writes(plan: &Plan) -> Vec<String> {
    let write = |claim: &tartan_ipam::Claim| match &claim.object {
        None => {
            assert_eq!(claim.expect, Some(Revision::from(7)), "the state it was decided on");
            format!("delete {}", claim.id)
        }
        Some(Object::Block(block)) => format!("{} to {}", claim.id, block.node),
        Some(Object::Pool(pool)) => format!("{} {}", claim.id, pool.cidr),
        Some(other) => format!("{other:?}"),
    };
    plan.claims.iter().map(write).collect()
}

#[test]
fn what_a_node_leaves_behind_goes_when_its_lease_is_over_and_nothing_hangs_on_it() {
    let began = Instant::now();
    let n1 = || node("n1", &["192.0.2.1"], &["10.1.0.0/24"]);
    let check = |what: &str, objects: &[(ObjectId, Object)], after: Duration, wanted: &[&str]| {
        let plan = planned(&world(objects, began), None, None, began + after);
        assert_eq!(writes(&plan), wanted, "{what}");
    };
    let gone = [n1(), network("n1"), network("n2")];
    let claimed = [n1(), network("n1"), network("n2"), block("10.0.0.0/26", "n2", None)];
    let shared = [n1(), network("n1"), network("n2"), block("10.0.0.0/26", "n2", Some(("10.0.0.0/28", "n1")))];
    let over = LEASE + COOLDOWN;
    check("the lease runs", &gone, over - Duration::from_millis(1), &[]);
    check("it is over", &gone, over, &["delete NodeNetwork/n2"]);
    check("a block is proven by it", &claimed, over, &[]);
    check("nodes have the first say", &claimed, over + PATIENCE - Duration::from_millis(1), &[]);
    check("no node has freed it", &claimed, over + PATIENCE, &["delete IPBlock/10-0-0-0-26"]);
    check("another has a part of it", &shared, over + PATIENCE, &["IPBlock/10-0-0-0-26 to n1"]);
    check("without a NodeNetwork", &claimed[3..], PATIENCE, &["delete IPBlock/10-0-0-0-26"]);
    let due = planned(&world(&gone, began), None, None, began).wake_at;
    assert_eq!(due, Some(began + over), "it looks again then");
}

#[test]
fn what_is_not_known_is_left_alone() {
    let began = Instant::now();
    let objects = [network("n2"), block("10.0.0.0/26", "n2", None), node("n1", &["192.0.2.1"], &[])];
    let late = began + 10 * (LEASE + COOLDOWN + PATIENCE);
    let mut world = world(&objects, began);
    assert_eq!(writes(&planned(&world, Some(began), None, late)).len(), 2, "a block, a pool");
    world.store(StoreEvent::Away(Some(Kind::NodeNetwork), "cut off".into()), late);
    assert_eq!(planned(&world, Some(began), None, late), Plan::default(), "signs of life may have been missed");
    list(&mut world, &objects, late);
    assert_eq!(writes(&planned(&world, None, None, late)), Vec::<String>::new(), "leases run anew");
    let mut half = World::new("".into(), Features::default());
    half.store(StoreEvent::Init(Kind::NodeNetwork), began);
    assert_eq!(planned(&half, Some(began), None, late), Plan::default(), "a list is under way");
}

/// All wait for it: whoever looks at the object has to see why.
#[test]
fn what_holds_up_the_first_list_is_said() {
    let [pool, node] = [id(Kind::IpPool, "a"), id(Kind::Node, "n1")];
    let mut world = World::new("".into(), Features::default());
    let [about, field, message, fix] = ["IPPool/a", "spec.cidr", "no range", "write one"].map(str::to_owned);
    let condition = Condition { about, field, reason: "BadValue", message, fix };
    for id in [&pool, &node] {
        world.store(StoreEvent::Init(id.kind), Instant::now());
        world.store(StoreEvent::Invalid(id.clone(), condition.clone().into()), Instant::now());
    }
    let plan = planned(&world, None, None, Instant::now());
    assert_eq!(plan, Plan { words: [(pool, Word::Diagnosis(vec![condition]))].into(), ..Plan::default() });
}

#[test]
fn a_pool_is_made_where_nobody_says_whence_addresses_come() {
    let began = Instant::now();
    let check = |objects: &[(ObjectId, Object)], service: Option<&str>, wanted: &[&str]| {
        let world = world(objects, began);
        let service = service.map(|ip| ip.parse().unwrap());
        let early = planned(&world, Some(began), service, began + PATIENCE - Duration::from_millis(1));
        assert_eq!(writes(&early), Vec::<String>::new());
        let plan = planned(&world, Some(began), service, began + PATIENCE);
        assert_eq!(writes(&plan), wanted);
        assert_eq!(
            writes(&planned(&world, None, service, began + PATIENCE)),
            Vec::<String>::new(),
            "not seen for long"
        );
    };
    check(&[], None, &[]);
    check(&[node("n1", &["192.0.2.1"], &[])], None, &["IPPool/default-ipv4 10.244.0.0/16"]);
    check(
        &[node("n1", &["192.0.2.1", "2001:db8::1"], &[])],
        None,
        &["IPPool/default-ipv4 10.244.0.0/16", "IPPool/default-ipv6 fd00:10:244::/56"],
    );
    check(&[node("n1", &["10.244.3.1"], &[])], Some("10.42.0.1"), &["IPPool/default-ipv4 172.20.0.0/16"]);
    check(&[node("n1", &["192.0.2.1"], &["10.1.0.0/24"]), node("n2", &["192.0.2.2"], &[])], None, &[]);
    check(&[node("n1", &["192.0.2.1"], &[]), pool("p", "10.9.0.0/16", "all()")], None, &[]);
    check(
        &[node("n1", &["2001:db8::1"], &[]), pool("p", "10.9.0.0/16", "all()")],
        None,
        &["IPPool/default-ipv6 fd00:10:244::/56"],
    );
}

#[test]
fn each_object_is_told_what_is_wrong_with_it() {
    let began = Instant::now();
    let mut objects = vec![
        node("n1", &["10.8.0.7"], &[]),
        pool("a", "10.7.0.0/16", "all()"),
        pool("b", "10.7.128.0/17", "all()"),
        pool("c", "10.8.0.0/16", "zone == 'z'"),
        pool("d", "10.9.0.0/26", "all()"),
        block("10.9.0.0/26", "n1", None),
        policy("shop/good", r#"{"spec":{"podSelector":{}}}"#),
        policy("shop/bad", r#"{"spec":{"podSelector":{},"ingress":[{"ports":[{"protocol":"XTP"}]}]}}"#),
    ];
    let mut world = world(&objects, began);
    let told = |world: &World, memo: &mut Memo| -> BTreeMap<String, Vec<&'static str>> {
        let plan = plan(memo, world, &BTreeMap::new(), None, began);
        let reasons = |word: &Word| match word {
            Word::Diagnosis(said) => said.iter().map(|condition| condition.reason).collect(),
            Word::Available(_) | Word::Annotated(_) => panic!("an operator places no pods"),
            Word::Trouble { .. } => panic!("no node says anything"),
        };
        plan.words.iter().map(|(id, word)| (id.to_string(), reasons(word))).collect()
    };
    let mut memo = Memo::default();
    let first = told(&world, &mut memo);
    let of = |told: &BTreeMap<String, Vec<&'static str>>, name: &str| told.get(name).cloned();
    assert_eq!(of(&first, "IPPool/a"), Some(vec![]));
    assert_eq!(of(&first, "IPPool/b"), Some(vec!["PoolsOverlap"]));
    assert_eq!(of(&first, "IPPool/c"), Some(vec!["NoNode", "OverNodes"]));
    assert_eq!(of(&first, "IPPool/d"), Some(vec!["AllClaimed"]));
    assert_eq!(of(&first, "NetworkPolicy/shop/good"), None);
    assert_eq!(of(&first, "NetworkPolicy/shop/bad").map(|said| said.len()), Some(1));

    objects.retain(|(id, _)| &*id.name != "b");
    objects.last_mut().unwrap().1 = policy("shop/bad", r#"{"spec":{"podSelector":{}}}"#).1;
    list(&mut world, &objects, began);
    let second = told(&world, &mut memo);
    assert_eq!(second, told(&world, &mut Memo::default()), "what was planned before makes no difference");
    assert_eq!((of(&second, "IPPool/b"), of(&second, "NetworkPolicy/shop/bad")), (None, None));
}

#[test]
fn what_lasts_on_a_node_is_told_and_of_some_nodes_only() {
    let began = Instant::now();
    let at = |secs| began + Duration::from_secs(secs);
    let said = |name: &str, since: &str| {
        let condition = |kind: &str, status: &str| NodeCondition {
            kind: kind.into(),
            status: status.into(),
            reason: kind.into(),
            message: "a port is closed".into(),
            since: since.into(),
        };
        let (id, Object::NodeNetwork(network)) = network(name) else { panic!("a NodeNetwork is one") };
        let conditions = vec![condition("Ready", "False"), condition("Blocked", "True")];
        (id, Object::NodeNetwork(NodeNetwork { conditions, ..network }))
    };
    let mut world = world(&[node("n1", &["10.8.0.7"], &[]), said("n1", "then"), said("gone", "then")], began);
    let told = |world: &World, now| -> (Vec<String>, Option<Instant>) {
        let plan = plan(&mut Memo::default(), world, &BTreeMap::new(), None, now);
        let words = plan.words.iter().filter_map(|(id, word)| match word {
            Word::Trouble { reason, since } => Some(format!("{id} {reason} {since}")),
            _ => None,
        });
        (words.collect(), plan.wake_at)
    };
    let (words, wake_at) = told(&world, at(29));
    assert!(words.is_empty() && wake_at <= Some(at(30)), "{words:?} {wake_at:?}");
    assert_eq!(told(&world, at(30)).0, ["NodeNetwork/n1 Blocked then"], "n1 says so, and is there");
    let mut say = |(id, object), now| world.store(StoreEvent::Put(id, object, Revision::from(2)), now);
    // A sign of life changes nothing; another time is another trouble.
    say(said("n1", "then"), at(40));
    say(said("n1", "later"), at(50));
    assert_eq!(told(&world, at(79)).0, [""; 0]);
    assert_eq!(told(&world, at(80)).0, ["NodeNetwork/n1 Blocked later"]);
    for number in 0..40 {
        let name = format!("m{number}");
        for (id, object) in [node(&name, &["10.8.0.8"], &[]), said(&name, "then")] {
            world.store(StoreEvent::Put(id, object, Revision::from(1)), at(50));
        }
    }
    assert_eq!(told(&world, at(80)).0.len(), 20);
    let (id, object) = network("n1");
    world.store(StoreEvent::Put(id, object, Revision::from(3)), at(90));
    assert!(!world.troubles.contains_key("n1"));
}

/// Waits until it is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), looking).await.is_ok();
    assert!(waited, "waited in vain until {what}");
}

/// What is answered to a GET; none if nobody listens.
async fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// Two operators of one node have one address between them; the second one's store is away.
#[tokio::test]
async fn an_operator_says_how_it_stands_and_the_second_of_a_node_once_the_first_has_gone() {
    let (store, away) = (MemoryStore::new(), MemoryStore::new());
    for (id, object) in [pool("a", "10.7.0.0/16", "all()"), pool("b", "10.7.128.0/17", "all()")] {
        store.put(id, object, Expect::Any).await.unwrap();
    }
    away.go_away("it is out");
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (leads, led) = watch::channel(false);
    let operator = |store: MemoryStore| {
        let ((sender, questions), led) = (mpsc::channel(1), led.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = serve(address, sender) => unreachable!("it serves for ever"),
                ended = operate(Arc::new(store), led, None, questions) => ended,
            }
        })
    };
    let has = |path: &'static str, part: &'static str| async move {
        let said = async || get(address, path).await.is_some_and(|said| said.contains(part));
        let looking = async {
            while !said().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), looking).await.is_ok();
        assert!(waited, "waited in vain for {part:?} at {path}: {:?}", get(address, path).await);
    };
    let first = operator(store);
    has("/readyz", "200 OK").await;
    has("/metrics", "\ntartan_operator_leads 0\n").await;
    let second = operator(away);
    leads.send(true).unwrap();
    has("/metrics", "\ntartan_operator_leads 1\n").await;
    has("/metrics", "\ntartan_operator_objects_at_fault{kind=\"IPPool\"} 1\n").await;
    has("/metrics", "\ntartan_store_lists_total{kind=\"Node\"} 1\n").await;
    has("/metrics", "\ntartan_store_writes_total{outcome=\"done\"} 2\n").await;
    first.abort();
    has("/readyz", "503 Service Unavailable").await;
    has("/readyz", "waiting for the store: it is out").await;
    has("/healthz", "200 OK").await;
    has("/metrics", "\ntartan_store_away 1\n").await;
    second.abort();
}

#[tokio::test]
async fn a_loop_that_answers_nothing_is_not_healthy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(crate::http::serve(listener, async |_| None));
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert!(get(address, path).await.unwrap().starts_with("HTTP/1.1 503 "), "{path}");
    }
}

#[tokio::test]
async fn only_who_leads_writes() {
    let store = MemoryStore::new();
    let config = Config { lease: Duration::from_secs(3), cooldown: Duration::ZERO, ..Config::default() };
    let (pool_id, pool) = pool("p", "10.9.0.0/16", "all()");
    let (gone, network) = network("n2");
    for (id, object) in [
        (id(Kind::NetworkConfig, "default"), Object::Config(config.into())),
        (pool_id.clone(), pool),
        (gone.clone(), network),
    ] {
        store.put(id, object, Expect::Any).await.unwrap();
    }
    let (leads, led) = watch::channel(false);
    let operator = tokio::spawn(operate(Arc::new(store.clone()), led, None, mpsc::channel(1).1));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(store.get(&gone).is_some() && store.diagnosis(&pool_id).is_none(), "it does not lead");
    leads.send(true).unwrap();
    until("what n2 left behind has gone", || store.get(&gone).is_none()).await;
    until("the pool is told that nothing is wrong with it", || store.diagnosis(&pool_id) == Some(Vec::new())).await;
    leads.send(false).unwrap();
    let (again, network) = self::network("n2");
    store.put(again, network, Expect::Absent).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(store.get(&gone).is_some(), "it leads no more");
    drop(leads);
    let ended = operator.await.unwrap().unwrap_err().to_string();
    assert_eq!(ended, "nobody can tell whether this operator leads");
}
