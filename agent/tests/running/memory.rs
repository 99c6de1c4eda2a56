//! An agent that starts while the store is away and goes on with what it knew.

use tartan_api::cni::{Command, code};
use tartan_api::status::Status;
use tartan_model::{Advert, Block, Config, FabricMode, Kind, NodeCondition, Object, ObjectId, Pool, World};
use tartan_netstate::{Key, Object as Kernel, Route, State};

use crate::rig::{Rig, link, pool};

fn reaches_its_peers(status: &Status) -> bool {
    status.peers.len() == 2 && status.peers.iter().all(|peer| !peer.fabric.is_empty())
}

fn says(status: &Status, reason: &str) -> bool {
    status.conditions.iter().any(|said| said.reason == reason)
}

/// Keys of the one that the other lacks.
fn lost(before: &State, after: &State) -> Vec<String> {
    before.iter().map(|(key, _)| key).filter(|key| after.get(key).is_none()).map(ToString::to_string).collect()
}

/// An agent with two peers has run, and has all that it knows on its disk; then the store goes away, and it dies.
async fn orphaned() -> Rig {
    let rig = Rig::new().await;
    rig.put_peer(1).await;
    rig.put_peer(2).await;
    let agent = rig.ready().await;
    agent.add("a").await;
    agent.until("the peers are reached", reaches_its_peers).await;
    agent.until("all is done", |status| status.phase == "steady").await;
    let word = rig.advert().unwrap();
    let all = |world: &World| {
        let own = world.adverts.get("n1").is_some_and(|heard| heard.advert.edition == word.edition);
        own && world.nodes.len() == 3 && world.adverts.len() == 3 && world.pods.len() >= 2
    };
    rig.snapshot("all nodes and this one's last word", all).await;
    rig.store.go_away("nobody at home");
    agent.kill().await;
    rig
}

#[tokio::test]
async fn it_changes_nothing_where_nothing_is_missing_and_serves_pods() {
    let rig = orphaned().await;
    let (before, changes) = (rig.kernel.state(), rig.kernel.changes().len());
    let agent = rig.ready().await;
    let status = agent.until("it says what it goes by", |status| says(status, "StoreUnread")).await;
    assert!(reaches_its_peers(&status), "{:?}", status.peers);
    assert_eq!(rig.kernel.changes().len(), changes);
    agent.cni(Command::Status, "").await.unwrap();
    assert_eq!(agent.add("b").await.len(), 2);
    agent.cni(Command::Del, "a").await.unwrap();
    agent.until("the link is gone", |_| rig.kernel.state().get(&link("a")).is_none()).await;
    let not_a: Vec<String> = lost(&before, &rig.kernel.state());
    let others = not_a.iter().filter(|key| key.contains("10.127.0.0/24") || key.contains("ttx")).count();
    assert_eq!(others, 0, "{not_a:?}");
    let writes = rig.store.writes();
    rig.store.come_back();
    agent.until("the store is read", |status| !says(status, "StoreUnread")).await;
    agent.until("it is as it was", |status| status.phase == "steady" && reaches_its_peers(status)).await;
    assert!(rig.store.writes() <= writes + 1, "but for a sign of life, it has nothing new to tell");
}

#[tokio::test]
async fn a_pod_that_it_never_heard_of_waits_for_the_store() {
    let rig = orphaned().await;
    let agent = rig.ready().await;
    let mut answer = agent.call(Command::Add, "stranger").await;
    assert!(tokio::time::timeout(crate::A_WHILE, &mut answer).await.is_err(), "nothing is known of it");
    assert_eq!(agent.add("b").await.len(), 2, "and holds nobody up that is known");
    rig.store.come_back();
    rig.put_pod("stranger", crate::rig::pod("n1")).await;
    answer.await.unwrap().unwrap();
}

#[tokio::test]
async fn after_a_boot_it_makes_everything_again() {
    let mut rig = orphaned().await;
    let before = rig.kernel.state();
    rig.reboot();
    let agent = rig.ready().await;
    agent.until("the peers are reached", reaches_its_peers).await;
    assert!(agent.status().await.pods.is_empty(), "pods do not outlive a boot");
    let is_pods = |key: &str| key.contains("ttp") || key.contains("netns");
    let missing = || lost(&before, &rig.kernel.state()).into_iter().filter(|key| !is_pods(key)).collect::<Vec<_>>();
    let of_policy = ["policy_subjects", "policy_sources", "policy_self", "policy_addresses", "policy_generation"];
    let of_a = |key: &String| {
        (key.contains("10.127.0.") && key.contains("/32")) || of_policy.iter().any(|set| key.contains(set))
    };
    agent.until("all but the pod is there", |_| missing().iter().all(|key| of_a(key) || key.contains("/128"))).await;
    assert_eq!(agent.add("b").await.len(), 2);
    rig.store.come_back();
    agent.until("the store is read", |status| !says(status, "StoreUnread")).await;
    agent.until("it is steady", |status| status.phase == "steady" && reaches_its_peers(status)).await;
}

#[tokio::test]
async fn what_is_taken_away_is_put_back_and_what_it_does_not_understand_stays() {
    let rig = orphaned().await;
    // Since the snapshot the kernel has been told other things: the way to one peer, and a route to one it does not know.
    let state = rig.kernel.state();
    let to_peers = |(key, entry): &(&Key, &tartan_netstate::Entry)| matches!((key, &entry.object), (Key::Route { .. }, Kernel::Route(route)) if route.dev.as_ref().is_some_and(|dev| dev.as_str().starts_with("ttx")) && route.via.is_some());
    let routes: Vec<(Key, Kernel)> =
        state.iter().filter(to_peers).map(|(key, entry)| (key.clone(), entry.object.clone())).collect();
    assert!(routes.len() >= 4, "{routes:?}");
    let by_eth0 = Route::via("172.30.0.77".parse().unwrap(), tartan_netstate::LinkName::new("eth0").unwrap());
    rig.kernel.put(routes[0].0.clone(), Kernel::Route(by_eth0.clone().into()));
    let unknown = match routes[0].0.clone() {
        Key::Route { ns, table, metric, .. } => Key::Route { ns, table, dst: "10.200.0.0/24".parse().unwrap(), metric },
        other => panic!("{other}"),
    };
    rig.kernel.put(unknown.clone(), Kernel::Route(by_eth0.clone().into()));
    rig.kernel.remove(&routes[1].0);
    let agent = rig.ready().await;
    agent.until("what is missing is back", |_| rig.kernel.state().holds(&routes[1].0, &routes[1].1)).await;
    let kept = |key: &Key| rig.kernel.state().holds(key, &Kernel::Route(by_eth0.clone().into()));
    assert!(kept(&routes[0].0) && kept(&unknown), "something was changed that the snapshot may be too old for");
    rig.kernel.remove(&unknown);
    agent.until("it is put back all the same", |_| kept(&unknown)).await;

    rig.store.come_back();
    agent.until("the store has the last word", |_| rig.kernel.state().holds(&routes[0].0, &routes[0].1)).await;
    agent.until("nothing of the unknown is left", |_| rig.kernel.state().get(&unknown).is_none()).await;
}

#[tokio::test]
async fn a_change_of_fabric_waits_for_the_store() {
    let rig = orphaned().await;
    rig.store.come_back();
    let agent = rig.ready().await;
    agent.until("the store is read", |status| !says(status, "StoreUnread")).await;
    agent.kill().await;
    // Nobody is there to hear of it.
    rig.put_config(Config { fabric: FabricMode::HostGw, ..Config::default() }).await;
    rig.store.go_away("nobody at home");
    let changes = rig.kernel.changes().len();
    let agent = rig.ready().await;
    assert_eq!(agent.status().await.fabric, "vxlan");
    rig.store.come_back();
    agent.until("it hears of it", |status| status.fabric == "host-gw").await;
    assert!(reaches_its_peers(&agent.status().await), "the peers do not hear host-gw");
    assert_eq!(rig.kernel.changes().iter().skip(changes).filter(|change| change.steps.len() > 8).count(), 0);
}

#[tokio::test]
async fn a_snapshot_that_is_refused_is_as_none_and_is_replaced() {
    let rig = orphaned().await;
    let file = rig.dir.join(tartan_agent::snapshot::FILE);
    let whole = std::fs::read_to_string(&file).unwrap();
    for bad in [whole[..whole.len() / 2].to_owned(), whole.replace("\"format\":2", "\"format\":9")] {
        std::fs::write(&file, &bad).unwrap();
        let agent = rig.start();
        agent.until("it waits", |status| status.waiting_for.contains("nobody at home")).await;
        assert_eq!(agent.cni(Command::Add, "b").await.unwrap_err().code, code::TRY_LATER);
        agent.kill().await;
        assert_eq!(std::fs::read_to_string(&file).unwrap(), bad);
    }
    rig.store.come_back();
    let agent = rig.ready().await;
    rig.snapshot("all nodes", |world| world.nodes.len() == 3).await;
    agent.kill().await;
}

#[tokio::test]
async fn a_block_is_let_go_of_only_when_the_snapshot_gives_nothing_out_of_it() {
    let rig = Rig::new().await;
    rig.put_node("n1", "172.30.0.1", &[]).await;
    rig.put(Kind::IpPool, "all", pool("10.128.0.0/24", 26)).await;
    rig.put_config(Config { cooldown: std::time::Duration::ZERO, ..Config::default() }).await;
    let agent = rig.ready().await;
    let owned = agent.until("a block is owned", |status| !status.blocks.is_empty()).await.blocks[0].cidr.clone();
    let name = Block::name_of(&owned.parse().unwrap());
    let claimed = || rig.store.get(&ObjectId { kind: Kind::IpBlock, name: name.as_str().into() }).is_some();
    // A second pool, which the node's own address can move to.
    let Object::Pool(all) = pool("10.128.0.0/24", 26) else { panic!("it is a pool") };
    let second = Pool { name: "second".into(), cidr: "10.129.0.0/24".parse().unwrap(), ..(*all).clone() };
    rig.put(
        Kind::IpPool,
        "second",
        Object::Pool(Pool { nodes: "has(absent)".parse().unwrap(), ..second.clone() }.into()),
    )
    .await;
    rig.snapshot("block and pools", |world| world.blocks.len() == 1 && world.pools.len() == 2).await;
    // The disk can no longer be written: a directory is in the way.
    let beside = rig.dir.join("snapshot.json.next");
    std::fs::create_dir(&beside).unwrap();
    rig.put(Kind::IpPool, "second", Object::Pool(second.into())).await;
    rig.put(Kind::IpPool, "all", Object::Pool(Pool { disabled: true, ..(*all).clone() }.into())).await;
    let unwritten =
        |conditions: &[NodeCondition]| conditions.iter().find(|it| it.kind == "SnapshotNotWritten").cloned();
    agent.until("it is said", |_| rig.network().and_then(|it| unwritten(&it.conditions)).is_some()).await;
    let said = unwritten(&rig.network().unwrap().conditions).unwrap().message;
    let file = rig.dir.join(tartan_agent::snapshot::FILE);
    assert!(said.contains(&format!("{} cannot be written: Is a directory (os error 21)", file.display())), "{said}");
    assert!(agent.status().await.conditions.iter().any(|it| it.reason == "SnapshotNotWritten"));
    // What it says of itself goes on meanwhile.
    rig.put_config(Config { cooldown: std::time::Duration::ZERO, fabric: FabricMode::HostGw, ..Config::default() })
        .await;
    let word = |advert: &Advert| advert.accepts.iter().any(|end| end.instance.starts_with("host-gw"));
    agent.until("it offers another fabric", |_| rig.advert().is_some_and(|advert| word(&advert))).await;
    tokio::time::sleep(crate::A_WHILE * 3).await;
    assert!(claimed(), "it is gone while the disk says that it is ours");
    std::fs::remove_dir(&beside).unwrap();
    agent.until("it is let go of", |_| !claimed()).await;
    agent.until("it is said no more", |_| unwritten(&rig.network().unwrap().conditions).is_none()).await;
    let other = |world: &World| world.blocks.values().all(|block| &*block.pool == "second");
    rig.snapshot("that it is gone", other).await;
}
