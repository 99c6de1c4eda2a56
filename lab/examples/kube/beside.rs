//! What befalls a network's agents and one of its nodes, and what pods notice of it: with Tartan, and with Flannel beside it.

use std::time::Instant;

use anyhow::Result;

use crate::agents::{Agents, FLANNEL};
use crate::cluster::{Cluster, Wants};
use crate::flannel::{self, Backend};
use crate::measure::{TALKING, figure, lost};
use crate::{Programs, life, pods};

/// Agents are killed, one a node, then are gone for a while; then a node is rebooted. Figures end in `suffix`.
pub(crate) fn survive(cluster: &mut Cluster, agents: Agents, manifest: &str, suffix: &str) -> Result<()> {
    let talking = pods::endpoints(cluster, &TALKING)?;
    lost(&format!("killed.lost{suffix}"), &life::through(&talking, |_| agents.kill(cluster))?);
    let gone = life::through(&talking, |load| agents.gone(cluster, load, manifest))?;
    lost(&format!("agents_gone.lost{suffix}"), &gone);

    let others = pods::endpoints(cluster, &["on-n1", "on-n2"])?;
    let mut took = 0.0;
    let report = life::through(&others, |_| {
        let start = Instant::now();
        life::reboot(cluster, "n3", "on-n3", &others[0])?;
        took = start.elapsed().as_secs_f64();
        Ok(())
    })?;
    figure(&format!("reboot.back{suffix}"), took);
    lost(&format!("reboot.others_lost{suffix}"), &report);
    Ok(())
}

/// The same on a cluster with Flannel. Its agents are replaced by others of the same version.
pub(crate) fn flannel() -> Result<()> {
    let wants = Wants { flannel: true, ..Wants::default() };
    let mut cluster = Cluster::up("kube-bench", Programs::from_environment()?, wants)?;
    flannel::install(&cluster, Backend::Vxlan)?;
    cluster.wait_until_ready()?;
    pods::run(&cluster, pods::one_a_node(&["n1", "n2", "n3"]))?;
    let talking = pods::endpoints(&cluster, &TALKING)?;
    let report = life::through(&talking, |_| FLANNEL.restart(&cluster).map(drop))?;
    lost("upgrade.lost.flannel", &report);
    let manifest = flannel::manifest(&cluster, Backend::Vxlan)?;
    survive(&mut cluster, FLANNEL, &manifest, ".flannel")
}
