//! A node that joins, and what those who place pods are told of it.

use std::time::Duration;

use tartan_model::{Acknowledged, Advert, Config, FabricMode, Kind, Node, Object, Placement};

use super::rig::Rig;
use super::{A_WHILE, object};

/// What keeps pods off n1.
fn placement(rig: &Rig) -> Placement {
    match rig.store.get(&object(Kind::Node, "n1")).unwrap().0 {
        Object::Node(node) => node.placement,
        other => panic!("a Node is {other:?}"),
    }
}

/// A peer that knows of acknowledgements says what it acknowledges.
async fn acknowledge(rig: &Rig, words: Vec<Acknowledged>) {
    let (Object::NodeNetwork(network), _) = rig.store.get(&object(Kind::NodeNetwork, "p1")).unwrap() else { panic!() };
    let (heartbeat, acknowledges) = (network.advert.heartbeat + 1, Some(words.into()));
    let advert = Advert { heartbeat, acknowledges, ..(*network.advert).clone() };
    rig.put(Kind::NodeNetwork, "p1", Object::from(advert)).await;
}

#[tokio::test]
async fn pods_are_placed_on_a_node_once_its_peers_acknowledge_it_and_not_again_kept_off() {
    let mut rig = Rig::new().await;
    rig.put_config(Config { fabric: FabricMode::Vxlan, ..Config::default() }).await;
    rig.put_peer(1).await;
    acknowledge(&rig, Vec::new()).await;
    let (Object::Node(node), _) = rig.store.get(&object(Kind::Node, "n1")).unwrap() else { panic!() };
    let tainted = Placement { startup_taint: true, unavailable: None };
    rig.put(Kind::Node, "n1", Object::Node(Node { placement: tainted, ..(*node).clone() }.into())).await;

    let agent = rig.ready().await;
    let kept_off = Placement { startup_taint: true, unavailable: Some(true) };
    let open = Placement { startup_taint: false, unavailable: Some(false) };
    agent.until("pods are kept off", |_| placement(&rig) == kept_off).await;
    agent.until("it asks to be acknowledged", |_| rig.advert().is_some_and(|advert| advert.joining)).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(placement(&rig), kept_off);
    // Its word may become longer while it joins.
    while placement(&rig) != open {
        let edition = rig.advert().unwrap().edition;
        acknowledge(&rig, vec![Acknowledged { node: "n1".into(), edition }]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    agent.stop().await.unwrap();

    let agent = rig.ready().await;
    agent.until("it has said something", |_| rig.advert().is_some_and(|advert| !advert.joining)).await;
    assert_eq!(placement(&rig), open, "an agent that starts again keeps nobody off");
    agent.stop().await.unwrap();

    rig.reboot();
    let agent = rig.ready().await;
    agent.until("pods are kept off after a boot", |_| placement(&rig).unavailable == Some(true)).await;
}
