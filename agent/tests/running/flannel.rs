//! A node among nodes with Flannel, and with addresses that the network before gave out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tartan_api::flannel::{BACKEND_DATA, BACKEND_TYPE, MANAGED, PUBLIC_IP, VxlanData};
use tartan_api::status::Adopted;
use tartan_kernel::Kernel;
use tartan_model::{Config, Flannel, FlannelBackend, HostLink, Kind, Object, PerFamily, Pod, PolicyMode};
use tartan_netstate::claims::{MAIN_TABLE, ROUTE_METRIC};
use tartan_netstate::{Key, Netns};

use super::rig::{Rig, pod};

const CONFIG_MAP: &str = "kube-flannel/kube-flannel-cfg";

impl Rig {
    async fn put_flannel(&self) {
        let networks = PerFamily { v4: Some("10.127.0.0/16".parse().unwrap()), v6: None };
        let backend = FlannelBackend::Vxlan { vni: 1, port: 8472, direct: true };
        self.put(Kind::ConfigMap, CONFIG_MAP, Object::Flannel(Flannel { networks, backend }.into())).await;
    }

    /// What the Node's annotations are, of which this node's must be Flannel's.
    fn annotations(&self, name: &str) -> BTreeMap<String, String> {
        match self.store.get(&super::object(Kind::Node, name)).map(|(object, _)| object) {
            Some(Object::Node(node)) => node.annotations.clone(),
            other => panic!("a Node is {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_node_and_a_node_with_flannel_find_each_other() {
    let rig = Rig::new().await;
    rig.put_flannel().await;
    let annotations = [
        (MANAGED, "true"),
        (BACKEND_TYPE, "vxlan"),
        (BACKEND_DATA[0], r#"{"VNI":1,"VtepMAC":"4a:1f:3e:0c:55:d2"}"#),
        (PUBLIC_IP[0], "172.30.0.2"),
    ];
    rig.put_node("n2", "172.30.0.2", &["10.127.1.0/24"]).await;
    let agent = rig.ready().await;
    let dst = "10.127.1.0/24".parse().unwrap();
    let route = Key::Route { ns: Netns::Host, table: MAIN_TABLE, dst, metric: ROUTE_METRIC };
    assert!(rig.kernel.state().get(&route).is_none(), "nobody has said where n2 is");

    let Some((Object::Node(node), _)) = rig.store.get(&super::object(Kind::Node, "n2")) else { panic!("n2 is a Node") };
    let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let node = tartan_model::Node { annotations, ..(*node).clone() };
    rig.put(Kind::Node, "n2", Object::Node(node.into())).await;
    agent.until("n2 is reached", |_| rig.kernel.state().get(&route).is_some()).await;

    agent.until("what Flannel sends on is no leftover", |status| status.phase == "steady").await;
    agent.until("n1 says where it is", |_| !rig.annotations("n1").is_empty()).await;
    let told = rig.annotations("n1");
    let data: VxlanData = serde_json::from_str(&told[BACKEND_DATA[0]]).unwrap();
    let accepts = rig.advert().unwrap().accepts.clone();
    let endpoint = accepts.iter().find(|end| end.mac.is_some()).unwrap();
    assert_eq!((data.vni, Some(data.vtep_mac)), (1, endpoint.mac.map(|mac| mac.to_string())));
    assert_eq!((&*told[MANAGED], &*told[BACKEND_TYPE], &*told[PUBLIC_IP[0]]), ("true", "vxlan", "172.30.0.1"));

    // Who takes it away, by hand or by another program, does not keep it away.
    rig.put_node("n1", "172.30.0.1", &["10.127.0.0/24", "fd00:10:127::/64"]).await;
    agent.until("n1 says so again", |_| rig.annotations("n1") == told).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn addresses_of_pods_from_before_are_no_other_pods() {
    let rig = Rig::new().await;
    let agent = rig.ready().await;
    let taken = ["10.127.0.1", "10.127.0.2", "fd00:10:127::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let given = |addresses: &[IpAddr]| addresses.iter().map(|ip| (*ip, Arc::from("before"))).collect();
    agent.given(given(&taken)).await;
    let got = agent.add("a").await;
    assert_eq!(got, ["10.127.0.3", "fd00:10:127::2"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    // DEL of the other network's pod freed its files.
    agent.given(given(&[])).await;
    assert_eq!(agent.add("b").await, ["10.127.0.1", "fd00:10:127::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn pods_from_before_are_shown_with_their_bridge_and_whether_they_are_under_policy() {
    let rig = Rig::new().await;
    let mut host = rig.kernel.clone().host().unwrap();
    let addresses = ["10.127.0.1/24", "fd00:10:127::1/64"].map(|net| net.parse().unwrap()).into();
    host.links.push(HostLink { name: "cni0".into(), kind: "bridge".into(), addresses, ..host.links[0].clone() });
    rig.kernel.set_host(host);
    let old = ["10.127.0.2", "fd00:10:127::2"];
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    rig.put_pod("old", Pod { addresses: old.map(ip).into(), ..pod("n1") }).await;
    let agent = rig.ready().await;
    agent.given([old[0], old[1], "10.127.0.9"].map(|text| (ip(text), Arc::from("before"))).into_iter().collect()).await;

    let adopted = |pod: &str, addresses: &[&str], under_policy| Adopted {
        pod: pod.into(),
        addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
        bridge: "cni0".into(),
        under_policy,
    };
    let shown = |under_policy| [adopted("", &["10.127.0.9"], false), adopted("shop/old", &old, under_policy)];
    agent.until("the pod is under policy, and what is nobody's is not", |status| status.adopted == shown(true)).await;
    rig.put_config(Config { policy: PolicyMode::Off, ..Config::default() }).await;
    agent.until("policy is off", |status| status.adopted == shown(false)).await;
    agent.given(tartan_agent::former_network::Given::new()).await;
    agent.until("the pod has gone", |status| status.adopted.is_empty()).await;
    agent.stop().await.unwrap();
}
