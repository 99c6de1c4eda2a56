//! Fabrics that a program carries: one TCP stream beside the same over a bare veth pair, and the end of that program under
//! load.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tartan_lab::probe::{Load, wait_for};
use tartan_lab::{Lab, Netns, Node};

use crate::boringtun::Boringtun;
use crate::load::Pair;
use crate::{PATIENCE, Series, Subject, lab, losses, unknown};

/// Probes answered before an event begins.
const BEFORE: u64 = 5_000;

/// Two nodes with a pod each, a pair of namespaces with nothing but a veth pair between them, and one with boringtun's devices.
pub(crate) struct Fabric {
    ours: Pair,
    veth: Pair,
    boringtun: Option<Boringtun>,
    /// The two namespaces go with it, as they carry its prefix.
    lab: Lab,
}

impl Fabric {
    /// `boringtun` is its program, where it is measured beside us.
    pub(crate) fn up(fabric: &str, boringtun: Option<&Path>) -> Result<Self> {
        let lab = lab("fabric", 2, 1, fabric)?;
        let (client, server) = (lab.pod("a1")?, lab.pod("b1")?.endpoint());
        let ours = Pair { client: client.netns().clone(), server: server.netns, address: server.v4 };
        let [client, server] = ["y1", "y2"].map(|name| format!("{}{name}", lab.facts().prefix()));
        let [client, server] = [Netns::create(&client)?, Netns::create(&server)?];
        client.ip(&format!("link add eth0 type veth peer name eth0 netns {}\n", server.name()))?;
        for (netns, address) in [(&client, "10.9.0.1"), (&server, "10.9.0.2")] {
            netns.ip(&format!("address add {address}/24 dev eth0\nlink set eth0 up\n"))?;
        }
        let veth = Pair { client, server, address: [10, 9, 0, 2].into() };
        let boringtun = boringtun.map(|program| Boringtun::up(&lab, program)).transpose()?;
        Ok(Self { ours, veth, boringtun, lab })
    }

    /// Processor time of the programs that carry packets.
    fn engines(&self) -> Result<Duration> {
        self.lab.nodes().iter().map(|node| tartan_lab::cpu_of(engine(node)?)).sum()
    }

    fn happen(&mut self, event: &str) -> Result<()> {
        for node in self.lab.nodes() {
            let before = engine(node)?;
            match event {
                "upgrade" => {
                    node.set_program(&self.lab.another_program("tartan-newer")?);
                    node.restart_agent()?;
                }
                "kill" => drop(node.output(&["kill", "-9", &before.to_string()])?),
                other => return Err(unknown(&[other])),
            }
            wait_for(PATIENCE, "another engine", || engine(node).is_ok_and(|now| now != before))?;
        }
        Ok(())
    }
}

impl Subject for Fabric {
    /// `ours tcp` → Gbit/s; seconds of the engines' processor time for each Gbit.
    /// `veth|boringtun tcp` → Gbit/s.
    /// `upgrade|kill PROBES` → probes in all, lost, resets.
    fn measure(&mut self, question: &[&str]) -> Result<Series> {
        match question {
            ["ours", "tcp"] => {
                let before = self.engines()?;
                let (rate, took) = self.ours.timed("tcp")?;
                let used = self.engines()? - before;
                Ok(vec![vec![rate], vec![used.as_secs_f64() / (rate * took.as_secs_f64())]])
            }
            ["veth", "tcp"] => Ok(vec![vec![self.veth.measure("tcp")?]]),
            ["boringtun", "tcp"] => {
                let boringtun = self.boringtun.as_ref().context("its program was not given")?;
                Ok(vec![vec![boringtun.pair.measure("tcp")?]])
            }
            [event, probes] => {
                let pods = self.lab.pod_endpoints();
                let pairs = [(pods[0].clone(), pods[1].clone()), (pods[1].clone(), pods[0].clone())];
                let load = Load::new().udp(pairs.clone()).udp_mtu_sized(pairs.clone()).tcp_idle(pairs).start()?;
                load.wait_for_answers(BEFORE, PATIENCE)?;
                self.happen(event).with_context(|| self.lab.troubleshooting())?;
                load.wait_for_answers(probes.parse()?, PATIENCE)?;
                Ok(losses(event, &load.stop()?))
            }
            other => Err(unknown(other)),
        }
    }
}

fn engine(node: &Node) -> Result<i32> {
    let all = node.processes("tartan-engine")?;
    ensure!(all.len() == 1, "{} has {} engines\n{}", node.name(), all.len(), node.troubleshooting());
    Ok(all[0])
}
