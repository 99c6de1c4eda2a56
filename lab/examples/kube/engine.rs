//! Packets that a program carries, in a cluster: the program and what it has open outlive the containers of agents.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Value, json};
use tartan_lab::probe::{Running, wait_for};

use crate::agents::TARTAN;
use crate::cluster::{Cluster, items};
use crate::life;
use crate::pods::{self, PATIENCE};
use crate::tartan;
use crate::tests::{TALKING, with_a_pod_a_node};

/// What all nodes hear and may send on.
fn instances(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let nodes = cluster.get(&["nodenetworks.tartan.dev"])?;
    let spec = |node: &Value, field: &str| node["spec"][field].as_array().cloned().unwrap_or_default();
    let heard = |node: &Value| {
        let heard = spec(node, "accepts").into_iter().map(|end| end["instance"].clone());
        heard.chain(spec(node, "sends")).filter_map(|at| at.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    Ok(items(&nodes).iter().flat_map(heard).collect())
}

fn set_fabric(cluster: &Cluster, fabric: &str) -> Result<()> {
    tartan::configure(cluster, json!({"fabric": fabric}))?;
    let gone_over =
        || instances(cluster).is_ok_and(|all| !all.is_empty() && all.iter().all(|at| at.starts_with(fabric)));
    wait_for(PATIENCE, &format!("the cluster to go over to {fabric}"), gone_over).map(drop)
}

/// The engines of all nodes.
fn engines(cluster: &Cluster) -> Vec<Option<i32>> {
    cluster.machines().iter().map(|machine| machine.process(b"tartan\0engine\0")).collect()
}

/// The cluster goes over to udp, its agents are replaced, one of them is killed, and it goes back.
#[test]
fn udp_outlives_the_containers_of_agents() {
    let cluster = with_a_pod_a_node("kube-udp");
    let talking = pods::endpoints(&cluster, &TALKING).unwrap();
    let event = |_: &Running| {
        set_fabric(&cluster, "udp")?;
        let before = engines(&cluster);
        assert!(before.iter().all(Option::is_some), "{before:?}");
        assert_eq!(TARTAN.restart(&cluster)?, [""; 0], "nodes went out of service");
        life::kill_process(&cluster, "n2", TARTAN.begins)?;
        assert_eq!(engines(&cluster), before, "an agent's container took its engine along");
        set_fabric(&cluster, "vxlan")
    };
    life::through(&talking, event).unwrap().check_nothing_lost().unwrap();
}
