//! Policy through whole nodes: the store's files, real agents, real pods.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{let_pass, status};
use serde_json::Map;
use tartan_lab::{Attachment, Binaries, Lab, Netns, Network, cni_args};

/// Far more than a file needs to be read, and the kernel to follow.
const SOON: Duration = Duration::from_secs(4);

#[test]
fn a_pod_starts_when_its_object_is_there() -> Result<()> {
    let lab = Lab::builder("policy-late").nodes(1).pods_per_node(0).up()?;
    let node = lab.node("n1")?;
    let network = Network::tartan(node, &Binaries::beside_this_program()?.cni)?;
    for late in [0, 1, 5].map(Duration::from_secs) {
        let pod = format!("late{}", late.as_secs());
        let netns = Netns::create(&format!("{}{pod}", lab.facts().prefix()))?;
        let at = Attachment {
            container: pod.clone(),
            netns: netns.path(),
            ifname: "eth0".into(),
            args: cni_args(&pod),
            runtime_config: Map::new(),
        };
        let began = Instant::now();
        let answered = std::thread::scope(|scope| -> Result<Duration> {
            let adding = scope.spawn(|| network.add(node, &at).map(|_| began.elapsed()));
            let_pass(late)?;
            lab.announce_pod("n1", &pod)?;
            adding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let answered = answered.with_context(|| node.troubleshooting())?;
        eprintln!("an object {late:?} late: ADD answered after {answered:?}");
        ensure!(answered >= late && answered < late + SOON, "{answered:?} for {late:?}");
    }
    let status = status(node)?;
    ensure!(status["pods"].as_array().is_some_and(|pods| pods.len() == 3), "{status:#}");
    ensure!(status["policy"]["subjects"] == 3, "{status:#}");
    Ok(())
}
