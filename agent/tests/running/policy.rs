//! What becomes of policies in the kernel while the agent and its store come and go.

use tartan_api::cni::Command;
use tartan_model::{Kind, Labels, Object, PolicyText};
use tartan_netstate::{Change, Key, State};

use crate::rig::{Rig, Running, pod};

const ISOLATED: &str =
    r#"{"spec":{"ingress":[{"from":[{"podSelector":{}}]}],"podSelector":{"matchLabels":{"app":"shut"}}}}"#;

async fn put_policy(rig: &Rig, name: &str, json: &str) {
    rig.put(Kind::NetworkPolicy, &format!("shop/{name}"), Object::Policy(PolicyText { json: json.into() }.into()))
        .await;
}

async fn label(rig: &Rig, name: &str, app: &str) {
    let labels: Labels = [("app", app)].into_iter().collect();
    rig.put_pod(name, tartan_model::Pod { labels, ..pod("n1") }).await;
}

/// Two pods, one of which a policy isolates, and all of it in the kernel.
async fn isolated() -> (Rig, Running) {
    let rig = Rig::new().await;
    rig.put_peer(1).await;
    put_policy(&rig, "p", ISOLATED).await;
    label(&rig, "a", "shut").await;
    let agent = rig.ready().await;
    agent.add("a").await;
    agent.add("b").await;
    agent.until("the peer is reached", |status| status.peers.iter().any(|peer| !peer.fabric.is_empty())).await;
    agent.until("all is done", |status| status.phase == "steady").await;
    let edition = rig.advert().unwrap().edition;
    let all = |world: &tartan_model::World| {
        let own = world.adverts.get("n1").is_some_and(|heard| heard.advert.edition == edition);
        own && world.policies.len() == 1 && world.pods.get("shop/a").is_some_and(|pod| pod.labels != Labels::default())
    };
    rig.snapshot("policy, pods and this node's last word", all).await;
    (rig, agent)
}

fn of_policy(state: &State) -> Vec<Key> {
    state.iter().map(|(key, _)| key).filter(|key| key.is_of_policy()).cloned().collect()
}

fn steps(changes: &[Change]) -> Vec<String> {
    let steps = changes.iter().flat_map(|change| &change.steps);
    steps.filter(|step| step.key().is_of_policy()).map(|step| format!("{:?}", step.op())).collect()
}

#[tokio::test]
async fn restarts_and_lists_and_a_store_that_is_away_touch_no_policy() {
    let (rig, mut agent) = isolated().await;
    let (held, changes) = (of_policy(&rig.kernel.state()), rig.kernel.changes().len());
    assert!(held.len() > 50, "{held:?}");
    let untouched = |what: &str| {
        assert_eq!(steps(&rig.kernel.changes()[changes..]), Vec::<String>::new(), "{what}");
    };
    for _ in 0..3 {
        rig.store.come_back();
        agent.until("it is listed", |status| status.ready).await;
        untouched("a list");
    }
    rig.store.go_away("nobody at home");
    agent.until("it is away", |status| status.ready).await;
    for with_store in [false, true, false] {
        agent.kill().await;
        if with_store {
            rig.store.come_back();
        } else {
            rig.store.go_away("nobody at home");
        }
        agent = rig.ready().await;
        tokio::time::sleep(crate::A_WHILE).await;
        untouched(if with_store { "a restart" } else { "a restart without the store" });
    }
    rig.store.come_back();
    agent.until("the store is read", |status| !status.conditions.iter().any(|it| it.reason == "StoreUnread")).await;
    untouched("the store's return");
    assert_eq!(of_policy(&rig.kernel.state()), held);
}

/// The snapshot is of before; what the kernel holds is of after.
#[tokio::test]
async fn what_the_kernel_was_told_after_the_snapshot_stays_until_the_store_is_read() {
    let (rig, agent) = isolated().await;
    // From now on the disk takes no snapshot.
    std::fs::create_dir(rig.dir.join("snapshot.json.next")).unwrap();
    let before = rig.kernel.state();
    label(&rig, "b", "shut").await;
    let moved = |state: &State| before.differing_keys(state).any(Key::is_of_policy);
    agent.until("it has the other's policies", |_| moved(&rig.kernel.state())).await;
    agent.until("all is done", |status| status.ready).await;
    tokio::time::sleep(crate::A_WHILE).await;
    let held = of_policy(&rig.kernel.state());
    rig.store.go_away("nobody at home");
    agent.kill().await;

    let changes = rig.kernel.changes().len();
    let agent = rig.ready().await;
    // A pod that the snapshot knows of cannot be judged by what is there: it waits, and goes with what it was given.
    let mut answer = agent.call(Command::Add, "c").await;
    assert!(tokio::time::timeout(crate::A_WHILE, &mut answer).await.is_err(), "by what policies?");
    assert_eq!(steps(&rig.kernel.changes()[changes..]), Vec::<String>::new());
    assert_eq!(of_policy(&rig.kernel.state()), held);
    agent.cni(Command::Del, "b").await.unwrap();
    agent.until("what was the pod's is gone", |_| of_policy(&rig.kernel.state()).len() < held.len()).await;
    rig.store.come_back();
    answer.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_pod_is_answered_when_its_policies_are_in_the_kernel() {
    let (rig, agent) = isolated().await;
    label(&rig, "c", "new").await;
    rig.kernel.pause();
    let mut answer = agent.call(Command::Add, "c").await;
    assert!(tokio::time::timeout(crate::A_WHILE, &mut answer).await.is_err(), "the kernel has nothing of it");
    let before = of_policy(&rig.kernel.state()).len();
    rig.kernel.resume();
    answer.await.unwrap().unwrap();
    assert!(of_policy(&rig.kernel.state()).len() > before);
}
