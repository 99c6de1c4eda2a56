//! The agent as a whole, on the fake kernel and the store in memory.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod flannel;
mod joining;
mod journal;
mod memory;
mod policy;
mod rig;

use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use tartan_api::cni::{Command, code};
use tartan_kernel::fake::Fake;
use tartan_model::{Config, FabricMode, Kind, ObjectId, PolicyMode, World};
use tartan_netstate::claims::FABRIC_LINK_PREFIX;
use tartan_netstate::{Key, LinkName, Netns, State, stable_hash};

use rig::{Dying, Rig, addresses, link, netns, pool};

/// Long enough for anything that should not happen.
const A_WHILE: Duration = Duration::from_millis(100);

/// That of policy counts up with whatever may take something away.
fn is_generation(key: &Key) -> bool {
    tartan_netstate::Generation::of(key).is_some()
}

fn object(kind: Kind, name: &str) -> ObjectId {
    ObjectId { kind, name: name.into() }
}

#[tokio::test]
async fn an_add_is_answered_only_when_the_kernel_has_the_pod() {
    let rig = Rig::new().await;
    let agent = rig.ready().await;
    rig.kernel.pause();
    let mut answer = agent.call(Command::Add, "a").await;
    assert!(tokio::time::timeout(A_WHILE, &mut answer).await.is_err(), "answered before the kernel had anything");
    assert!(rig.kernel.state().get(&link("a")).is_none());
    rig.kernel.resume();
    let result = answer.await.unwrap().unwrap();
    assert_eq!(addresses(&result).len(), 2, "{result}");
    assert!(rig.kernel.state().get(&link("a")).is_some());
    assert_eq!(agent.status().await.pods.len(), 1);
}

#[tokio::test]
async fn a_del_is_answered_when_nothing_of_the_pod_is_reachable_and_its_addresses_rest() {
    let rig = Rig::new().await;
    let agent = rig.ready().await;
    let given = agent.add("a").await;
    agent.cni(Command::Del, "a").await.unwrap();
    let routed = |state: &State| {
        state.iter().any(|(key, _)| given.iter().any(|ip| key.to_string().contains(&format!("route {ip}/"))))
    };
    assert!(!routed(&rig.kernel.state()), "a route to the pod is left");
    assert!(agent.status().await.pods.is_empty());
    let next = agent.add("b").await;
    assert!(given.iter().all(|ip| !next.contains(ip)), "{next:?} were given to another pod at once");
}

#[tokio::test]
async fn without_ipv6_in_the_kernel_pods_are_ipv4_only_and_nothing_fails() {
    let rig = Rig::on(Fake::without_ipv6()).await;
    rig.put_peer(1).await;
    rig.put_config(Config { fabric: FabricMode::Vxlan, ..Config::default() }).await;
    let agent = rig.ready().await;
    let given = agent.add("a").await;
    assert!(matches!(given.as_slice(), [IpAddr::V4(_)]), "{given:?}");
    agent.until("the peer is reached", |status| status.peers.iter().any(|peer| !peer.fabric.is_empty())).await;
    let status = agent.until("everything is in the kernel", |status| status.kernel.failures.is_empty()).await;
    let reasons: Vec<&str> = status.conditions.iter().map(|condition| &*condition.reason).collect();
    assert_eq!(reasons, ["NoIpv6"], "{status:#?}");
    let refused = rig
        .kernel
        .changes()
        .iter()
        .flat_map(|change| change.steps.clone())
        .find(|step| step.key().to_string().contains("ipv6"));
    assert_eq!(refused, None, "nothing of IPv6 was tried");
    agent.cni(Command::Del, "a").await.unwrap();
}

#[tokio::test]
async fn what_the_kernel_refuses_fails_that_pod_alone_and_in_its_words() {
    let rig = Rig::new().await;
    let agent = rig.ready().await;
    rig.kernel.fail(link("bad"), Some(Errno::ENOSPC));
    let (bad, good) = (agent.call(Command::Add, "bad").await, agent.call(Command::Add, "good").await);
    let error = bad.await.unwrap().unwrap_err();
    assert_eq!(error.code, code::IO);
    assert!(error.to_string().contains("ENOSPC"), "{error}");
    good.await.unwrap().unwrap();
    agent.until("only the good pod is left", |status| status.pods.len() == 1 && status.ready).await;
}

#[tokio::test]
async fn what_the_kernel_refuses_later_is_a_condition_until_it_works() {
    let rig = Rig::new().await;
    let agent = rig.ready().await;
    agent.add("a").await;
    rig.kernel.fail(link("a"), Some(Errno::EBUSY));
    rig.kernel.remove(&link("a"));
    let said = |status: &tartan_api::status::Status| {
        status.conditions.iter().any(|said| said.about == "Pod/shop/a" && said.message.contains("EBUSY"))
    };
    let status = agent.until("the refusal is said", said).await;
    assert!(!status.ready);
    rig.kernel.fail(link("a"), None);
    agent.until("it is repaired", |status| status.ready && status.conditions.is_empty()).await;
    assert!(rig.kernel.state().get(&link("a")).is_some());
}

#[tokio::test]
async fn a_fabric_that_the_kernel_lacks_is_said_with_its_modules_and_the_present_one_goes_on() {
    let rig = Rig::new().await;
    rig.put_peer(1).await;
    rig.put_config(Config { fabric: FabricMode::Vxlan, ..Config::default() }).await;
    let agent = rig.ready().await;
    let by_vxlan = |status: &tartan_api::status::Status| {
        !status.peers.is_empty() && status.peers.iter().all(|peer| peer.fabric.starts_with("vxlan"))
    };
    agent.until("the peer is reached", by_vxlan).await;
    for family in ["ipv4", "ipv6"] {
        let device = stable_hash(&format!("ipip/ipv4 from 172.30.0.1 for {family}"));
        let link = LinkName::hashed(FABRIC_LINK_PREFIX, device);
        rig.kernel.fail(Key::Link { ns: Netns::Host, link }, Some(Errno::EOPNOTSUPP));
    }
    rig.put_config(Config { fabric: FabricMode::Ipip, ..Config::default() }).await;
    let said = |status: &tartan_api::status::Status| {
        let all = &mut status.conditions.iter();
        all.any(|said| said.message.contains("EOPNOTSUPP") && said.fix.contains("`modprobe -a ipip sit`"))
    };
    let status = agent.until("what is missing is said", said).await;
    assert!(by_vxlan(&status), "{status:#?}");
    let accepts: Vec<String> = rig.advert().unwrap().accepts.iter().map(|end| end.instance.to_string()).collect();
    assert_eq!(accepts, ["vxlan/ipv4/vni1/port8472"], "nobody may send what this kernel cannot take");
}

#[tokio::test]
async fn before_the_store_is_read_nothing_changes_and_adds_are_put_off() {
    let rig = Rig::new().await;
    rig.store.go_away("nobody at home");
    let agent = rig.start();
    let status = agent.until("it is known why", |status| status.waiting_for.contains("nobody at home")).await;
    assert!(!status.ready);
    let error = agent.cni(Command::Add, "a").await.unwrap_err();
    assert_eq!(error.code, code::TRY_LATER);
    assert!(error.to_string().contains("nobody at home"), "{error}");
    assert!(rig.kernel.changes().is_empty());
    rig.store.come_back();
    agent.until("it is ready", |status| status.ready).await;
    agent.add("a").await;
}

#[tokio::test]
async fn without_its_store_an_agent_goes_on() {
    let rig = Rig::new().await;
    rig.put_peer(1).await;
    let agent = rig.ready().await;
    agent.until("the peer is reached", |status| status.peers.iter().any(|peer| !peer.fabric.is_empty())).await;
    let before = rig.kernel.state();
    rig.store.go_away("maintenance");
    agent.add("a").await;
    agent.cni(Command::Del, "a").await.unwrap();
    rig.store.come_back();
    let status = agent.status().await;
    assert!(status.peers.iter().all(|peer| !peer.fabric.is_empty()), "{:?}", status.peers);
    // A pod that goes may have been let in somewhere.
    let lost = before.iter().find(|(key, _)| !is_generation(key) && rig.kernel.state().get(key).is_none());
    assert_eq!(lost, None);
}

#[tokio::test]
async fn an_agent_that_starts_again_changes_nothing_and_remembers_its_pods() {
    let rig = Rig::new().await;
    rig.put_peer(1).await;
    let agent = rig.ready().await;
    let mut given = Vec::new();
    for container in ["a", "b", "c"] {
        given.extend(agent.add(container).await);
    }
    agent.until("the peer is reached", |status| status.peers.iter().any(|peer| !peer.fabric.is_empty())).await;
    agent.until("all is done", |status| status.phase == "steady").await;
    tokio::time::sleep(A_WHILE).await;
    let (before, changes) = (rig.kernel.state(), rig.kernel.changes().len());

    agent.kill().await;
    let agent = rig.ready().await;
    tokio::time::sleep(A_WHILE).await;
    let made = rig.kernel.changes().split_off(changes);
    assert!(made.is_empty(), "changes after a restart: {made:#?}");
    let differs: Vec<String> = before.differing_keys(&rig.kernel.state()).map(ToString::to_string).collect();
    assert_eq!(differs, Vec::<String>::new());
    let error = agent.cni(Command::Add, "a").await.unwrap_err();
    assert_eq!(error.code, code::EXISTS, "{error}");
    let next = agent.add("d").await;
    assert!(next.iter().all(|ip| !given.contains(ip)), "{next:?} had been given out before");
}

#[tokio::test]
async fn a_pod_waits_for_its_pod_object_and_its_namespace() {
    let rig = Rig::new().await;
    rig.store.vanish(&object(Kind::Pod, "shop/a"));
    rig.store.vanish(&object(Kind::Namespace, "shop"));
    let agent = rig.ready().await;
    let mut answer = agent.call(Command::Add, "a").await;
    let waits = async |answer: &mut _| tokio::time::timeout(A_WHILE, answer).await.is_err();
    assert!(waits(&mut answer).await, "nothing is known of it");
    rig.put_pod("a", rig::pod("n2")).await;
    assert!(waits(&mut answer).await, "it was another node's");
    rig.put_pod("a", rig::pod("n1")).await;
    assert!(waits(&mut answer).await, "its namespace is not known");
    rig.put_namespace().await;
    assert_eq!(addresses(&answer.await.unwrap().unwrap()).len(), 2);
}

#[tokio::test]
async fn with_policy_off_or_audit_no_pod_waits_for_its_object() {
    let rig = Rig::new().await;
    for mode in [PolicyMode::Off, PolicyMode::Audit] {
        rig.store.vanish(&object(Kind::Pod, "shop/a"));
        rig.put_config(Config { policy: mode, ..Config::default() }).await;
        let agent = rig.ready().await;
        agent.add("a").await;
        agent.cni(Command::Del, "a").await.unwrap();
        agent.stop().await.unwrap();
    }
}

/// Policy set to enforce lets who waits go on waiting, and off lets them in.
#[tokio::test]
async fn who_waits_for_a_pod_object_is_let_in_when_policy_is_switched_off() {
    let rig = Rig::new().await;
    rig.store.vanish(&object(Kind::Pod, "shop/a"));
    let agent = rig.ready().await;
    let mut answer = agent.call(Command::Add, "a").await;
    assert!(tokio::time::timeout(A_WHILE, &mut answer).await.is_err(), "nothing is known of it");
    rig.put_config(Config { policy: PolicyMode::Off, ..Config::default() }).await;
    answer.await.unwrap().unwrap();
    assert_eq!(agent.status().await.policy.mode, "off");
}

/// As after a restart of an agent in a container that does not see the runtime's mounts.
#[tokio::test]
async fn a_pod_whose_namespace_cannot_be_found_goes_on_and_is_said() {
    let rig = Rig::new().await;
    let agent = rig.ready().await;
    agent.add("a").await;
    agent.add("b").await;
    let before = rig.kernel.state();
    agent.kill().await;
    rig.kernel.hide_pod(&netns("a"), true);
    let changes = rig.kernel.changes().len();

    let agent = rig.ready().await;
    let said = |status: &tartan_api::status::Status| {
        status.conditions.iter().map(|said| (said.reason.clone(), said.about.clone())).collect::<Vec<_>>()
    };
    let only = vec![("PodHidden".to_owned(), "Pod/shop/a".to_owned())];
    let status = agent.until("it is said", |status| said(status) == only).await;
    assert!(status.kernel.failures.is_empty() && status.ready, "{status:#?}");
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(rig.kernel.changes().len(), changes, "nothing is tried that cannot work");
    assert_eq!(before.differing_keys(&rig.kernel.state()).count(), 0);

    // Its end on the node is repaired, and others come and go.
    rig.kernel.remove(&rig::neighbour(&before, "a"));
    agent.add("c").await;
    agent
        .until("the repair", |_| {
            before.iter().all(|(key, _)| is_generation(key) || rig.kernel.state().get(key).is_some())
        })
        .await;
    agent.cni(Command::Del, "a").await.unwrap();
    agent.until("nothing more to say", |status| status.conditions.is_empty()).await;
    agent.until("the link is gone", |_| rig.kernel.state().get(&link("a")).is_none()).await;
}

#[tokio::test]
async fn told_to_stop_an_agent_leaves_the_kernel_as_it_is() {
    let rig = Rig::new().await;
    let agent = rig.ready().await;
    agent.add("a").await;
    let (before, changes) = (rig.kernel.state(), rig.kernel.changes().len());
    agent.stop().await.unwrap();
    assert_eq!(rig.kernel.changes().len(), changes);
    assert_eq!(before.differing_keys(&rig.kernel.state()).count(), 0);
}

#[tokio::test]
async fn an_add_that_nobody_waits_for_any_more_is_undone() {
    let rig = Rig::new().await;
    let agent = rig.ready().await;
    rig.kernel.pause();
    drop(agent.call(Command::Add, "a").await);
    agent.hung_up().await;
    rig.kernel.resume();
    agent.until("it is gone", |status| status.pods.is_empty()).await;
    let again = agent.add("a").await;
    assert_eq!(again.len(), 2);
}

#[tokio::test]
async fn a_fabric_is_changed_by_its_document() {
    let rig = Rig::new().await;
    let agent = rig.ready().await;
    let status = agent.until("vxlan is there", |status| !status.receives.is_empty()).await;
    assert!(status.receives[0].starts_with("vxlan/"), "{:?}", status.receives);
    rig.put_config(Config { fabric: FabricMode::HostGw, ..Config::default() }).await;
    let status = agent.until("host-gw is there", |status| status.fabric == "host-gw").await;
    assert!(status.conditions.is_empty(), "{:?}", status.conditions);
    let to = |advert: &std::sync::Arc<tartan_model::Advert>| {
        advert.accepts.iter().any(|end| end.instance.starts_with("host-gw"))
    };
    agent.until("it is told", |_| rig.advert().as_ref().is_some_and(to)).await;
}

#[tokio::test]
async fn a_quiet_agent_neither_plans_nor_writes() {
    let rig = Rig::new().await;
    rig.put_peer(1).await;
    let agent = rig.ready().await;
    agent.add("a").await;
    agent.until("all is done", |status| status.phase == "steady").await;
    let edition = rig.advert().unwrap().edition;
    let own_word = |world: &World| world.adverts.get("n1").is_some_and(|heard| heard.advert.edition == edition);
    rig.snapshot("its last word", own_word).await;
    tokio::time::sleep(A_WHILE * 3).await;
    let (before, changes, writes) = (agent.look().await, rig.kernel.changes().len(), rig.store.writes());
    tokio::time::sleep(Duration::from_secs(1)).await;
    // One for each look.
    assert_eq!(agent.look().await.counters.plans - before.counters.plans, 1);
    assert_eq!(rig.kernel.changes().len(), changes);
    assert_eq!(rig.store.writes(), writes);
}

#[tokio::test]
async fn an_advert_that_somebody_deletes_is_written_again() {
    let rig = Rig::new().await;
    rig.put_config(Config { lease: Duration::from_secs(3), ..Config::default() }).await;
    let agent = rig.ready().await;
    agent.until("it is told", |_| rig.advert().is_some()).await;
    rig.store.vanish(&object(Kind::NodeNetwork, "n1"));
    agent.until("it is told again", |_| rig.advert().is_some()).await;
    let beat = rig.advert().unwrap().heartbeat;
    agent.until("it beats", |_| rig.advert().unwrap().heartbeat > beat).await;
}

#[tokio::test]
async fn what_is_wrong_is_said_in_the_nodes_own_object_and_is_no_new_word() {
    let rig = Rig::new().await;
    let agent = rig.ready().await;
    agent.add("a").await;
    let said = |kind: &str, status: &str| {
        let conditions = rig.network().map(|network| network.conditions).unwrap_or_default();
        conditions.into_iter().find(|it| it.kind == kind && it.status == status)
    };
    agent.until("it says that it is well", |status| status.phase == "steady" && said("Ready", "True").is_some()).await;
    let edition = rig.advert().unwrap().edition;
    rig.kernel.fail(link("a"), Some(Errno::EBUSY));
    rig.kernel.remove(&link("a"));
    agent.until("it says what is wrong", |_| said("KernelRefused", "True").is_some()).await;
    let refused = said("KernelRefused", "True").unwrap();
    assert!(refused.message.starts_with("Pod/shop/a: the kernel refuses"), "{refused:?}");
    assert_eq!(said("Ready", "False").unwrap().reason, "KernelRefused");
    assert_eq!(rig.advert().unwrap().edition, edition, "peers would take it for a new word");

    let since = said("Ready", "False").unwrap().since;
    agent.kill().await;
    let beat = rig.advert().unwrap().heartbeat;
    let agent = rig.start();
    agent.until("it has tried again", |status| !status.kernel.failures.is_empty()).await;
    agent.until("it has written again", |_| rig.advert().unwrap().heartbeat > beat).await;
    assert_eq!(said("Ready", "False").unwrap().since, since, "another life has not made it so");
    rig.kernel.fail(link("a"), None);
    agent
        .until("it is well again", |_| said("Ready", "True").is_some() && said("KernelRefused", "True").is_none())
        .await;
    assert_eq!(rig.advert().unwrap().edition, edition);
}

#[tokio::test]
async fn a_claim_that_met_another_writer_is_tried_again() {
    let rig = Rig::new().await;
    rig.put_node("n1", "172.30.0.1", &[]).await;
    rig.put(Kind::IpPool, "all", pool("10.128.0.0/16", 26)).await;
    rig.store.conflict(3);
    let agent = rig.start();
    agent.until("a block is owned", |status| !status.blocks.is_empty()).await;
    assert_eq!(agent.add("a").await.len(), 1);
}

#[tokio::test]
async fn a_kernel_thread_that_dies_ends_the_agent() {
    let rig = Rig::new().await;
    let agent = rig.start_on(Box::new(Dying(rig.kernel.clone())));
    let error = agent.end().await.unwrap_err();
    assert!(error.to_string().starts_with("the kernel thread has ended"), "{error}");
}

#[tokio::test]
async fn pods_come_while_thousands_of_nodes_are_listed_again() {
    let rig = Rig::new().await;
    for number in 1..=5_000 {
        rig.put_peer(number).await;
    }
    let agent = rig.ready().await;
    let reached = |status: &tartan_api::status::Status| {
        status.peers.len() == 5_000 && status.peers.iter().all(|peer| !peer.fabric.is_empty())
    };
    agent.until("all peers are reached", reached).await;
    let before = rig.kernel.state();
    for container in ["a", "b", "c"] {
        rig.store.come_back();
        assert_eq!(agent.add(container).await.len(), 2);
    }
    agent.until("all peers are reached still", reached).await;
    let lost: Vec<String> = before
        .iter()
        .map(|(key, _)| key)
        .filter(|key| !is_generation(key) && rig.kernel.state().get(key).is_none())
        .map(ToString::to_string)
        .collect();
    assert_eq!(lost, Vec::<String>::new());
}

#[tokio::test]
async fn uninstall_takes_everything_back() {
    let rig = Rig::new().await;
    rig.put_peer(1).await;
    let agent = rig.ready().await;
    agent.add("a").await;
    agent.until("the peer is reached", |status| status.peers.iter().any(|peer| !peer.fabric.is_empty())).await;
    agent.stop().await.unwrap();
    let report = tartan_agent::uninstall::uninstall(&mut rig.kernel.clone(), &rig.dir).unwrap();
    assert_eq!(report.failures, Vec::<String>::new());
    assert!(report.removed > 0);
    let is_sysctl = |key: &Key| matches!(key, Key::Sysctl { .. } | Key::UplinkSysctl { .. });
    let left: Vec<String> =
        rig.kernel.state().iter().map(|(key, _)| key).filter(|key| !is_sysctl(key)).map(ToString::to_string).collect();
    assert_eq!(left, Vec::<String>::new());
    assert!(!rig.dir.exists(), "the agent's state is left");
}
