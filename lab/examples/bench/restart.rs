//! Events that no packet may notice, under load: agents killed and restarted, the fabric changed, the store away.
//!
//! UDP small and as large as the path takes, TCP busy and idle, both families, between pods of different nodes and from
//! a node to a remote pod.

use std::time::Duration;

use anyhow::{Context, Result};
use tartan_lab::Lab;
use tartan_lab::probe::{Load, Running, around, let_pass, wait_for};

use crate::{PATIENCE, Series, Subject, lab, losses, ms, unknown};

/// Probes answered before an event begins.
const BEFORE: u64 = 5_000;
const FABRICS: [&str; 2] = ["host-gw", "vxlan"];

/// Three nodes with a pod each.
pub(crate) struct Restart {
    lab: Lab,
}

impl Restart {
    pub(crate) fn up() -> Result<Self> {
        Ok(Self { lab: lab("restart", 3, 1, "vxlan")? })
    }
}

impl Subject for Restart {
    /// `EVENT PROBES` → probes in all, lost, resets (broken connections too), longest gap in ms.
    fn measure(&mut self, question: &[&str]) -> Result<Series> {
        let &[event, probes] = question else { return Err(unknown(question)) };
        let load = load(&self.lab)?;
        self.happen(event).with_context(|| self.lab.troubleshooting())?;
        load.wait_for_answers(probes.parse()?, PATIENCE)?;
        let report = load.stop()?;
        Ok(losses(event, &report).into_iter().chain([vec![ms(report.udp.longest_gap)]]).collect())
    }
}

impl Restart {
    fn happen(&mut self, event: &str) -> Result<()> {
        match event {
            "kill" => {
                let node = self.lab.node("n1")?;
                node.kill_agent()?;
                node.start_agent()?;
                node.wait_ready().map(drop)
            }
            "restart" => self.lab.node("n2")?.restart_agent().map(drop),
            "change" => self.change(Duration::ZERO),
            "change-3s-apart" => self.change(Duration::from_secs(3)),
            "change-10s-apart" => self.change(Duration::from_secs(10)),
            "change-and-kill" => self.change_and_kill(),
            "store-away-30s" => {
                self.lab.store_away()?;
                let_pass(Duration::from_secs(30))?;
                self.lab.store_back()
            }
            other => Err(unknown(&[other])),
        }
    }

    /// To the other fabric and back; n2 and n3 hear of it so much later, one after the other.
    fn change(&mut self, apart: Duration) -> Result<()> {
        for fabric in FABRICS {
            self.lab.set_fabric_apart(fabric, apart)?;
            wait_until_steady(&self.lab, fabric)?;
        }
        Ok(())
    }

    /// An agent dies while its peers are on their way to the other fabric, and comes back five seconds later.
    fn change_and_kill(&mut self) -> Result<()> {
        for fabric in FABRICS {
            self.lab.set_fabric(fabric)?;
            let node = self.lab.node("n1")?;
            let under_way = || node.status().is_ok_and(|status| status["fabric"] == fabric);
            wait_for(PATIENCE, "n1 to hear of the change", under_way)?;
            node.kill_agent()?;
            let_pass(Duration::from_secs(5))?;
            node.start_agent()?;
            node.wait_ready()?;
            wait_until_steady(&self.lab, fabric)?;
        }
        Ok(())
    }
}

/// UDP and TCP between pods of different nodes and from a node, answered before this returns.
pub(crate) fn load(lab: &Lab) -> Result<Running> {
    let around = around(&lab.pod_endpoints());
    let from_node = (lab.node("n1")?.endpoint(), lab.pod("b1")?.endpoint());
    let load = Load::new()
        .udp(around.clone())
        .udp_mtu_sized([around[0].clone()])
        .tcp_bulk(around.iter().take(2).cloned().chain([from_node.clone(), from_node.clone()]))
        .tcp_idle(around.iter().cloned().chain([from_node]))
        .start()?;
    load.wait_for_answers(BEFORE, PATIENCE)?;
    Ok(load)
}

/// Waits until every agent has programmed everything and uses `fabric` towards all its peers.
pub(crate) fn wait_until_steady(lab: &Lab, fabric: &str) -> Result<()> {
    wait_for(PATIENCE, &format!("every node to be steady on {fabric}"), || lab.is_steady(fabric)).map(drop)
}
