//! One row of the matrix in `docs/matrix.md`: a fabric over a family of underlay, and everything that is to work on it.
//!
//! `matrix FABRIC UNDERLAY ENCRYPTION` prints `NAME ok` or `NAME failed WHY`, a line for each thing. They are done one after
//! the other on one lab, so what a thing breaks for good shows in those after it, too. The rows are in `xtask/src/matrix.rs`.
#![allow(clippy::print_stdout, reason = "its output is its product")]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use tartan_lab::probe::{Load, around, let_pass, ping, wait_for};
use tartan_lab::{Family, Lab, Node};

const PATIENCE: Duration = Duration::from_secs(120);
/// Until a packet that may be lost counts as lost.
const ANSWER: Duration = Duration::from_secs(2);
/// Until it is believed that one that must not come back does not.
const SILENCE: Duration = Duration::from_millis(200);
/// Probes answered before an event begins, and after it has ended.
const PROBES: u64 = 3_000;
/// One probe a flow: an emulated processor bears no more,
const INTERVAL: Duration = Duration::from_millis(10);
/// and where it encrypts by AES, for which it has no instructions, less.
const INTERVAL_OF_IPSEC: Duration = Duration::from_millis(30);
const STREAMS_RUN: Duration = Duration::from_secs(5);
/// A lease in seconds: how long a node may be silent before it counts as lost.
const LEASE: u64 = 8;

/// Only where something is encrypted.
const ROTATION: &str = "rotation";
/// What encrypts, as a fabric and in another one's place.
const WIREGUARD: &str = "wireguard";
const IPSEC: &str = "ipsec";
const SECRET: &str = "a secret of the cluster that is long enough";

/// A thing that is to work.
type Check = fn(&mut Row) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("ping", Row::ping),
    ("sizes", Row::sizes),
    ("tcp", Row::tcp),
    ("restart", Row::restart),
    ("kill", Row::kill),
    ("change", Row::change),
    (ROTATION, Row::rotation),
    ("loss", Row::loss),
];

/// Three nodes with a pod each.
struct Row {
    lab: Lab,
    fabric: String,
    encryption: String,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [fabric, underlay, encryption] = &args[..] else { bail!("matrix FABRIC UNDERLAY ENCRYPTION") };
    ensure!(["none", WIREGUARD, IPSEC].contains(&encryption.as_str()), "there is no encryption `{encryption}`");
    let mut row = Row::up(fabric, underlay, encryption)?;
    let has_keys = [WIREGUARD, IPSEC].contains(&row.carries());
    for (name, check) in CHECKS.iter().filter(|(name, _)| has_keys || *name != ROTATION) {
        match check(&mut row) {
            Ok(()) => println!("{name} ok"),
            Err(error) => {
                eprintln!("{}", row.lab.troubleshooting());
                println!("{name} failed {}", format!("{error:#}").replace('\n', "; "));
            }
        }
    }
    Ok(())
}

// === impl Row ===

impl Row {
    fn up(fabric: &str, underlay: &str, encryption: &str) -> Result<Row> {
        let builder = Lab::builder("matrix").nodes(3).pods_per_node(1).fabric(fabric);
        let builder = builder.config("underlay", json!(underlay)).config("encryption", json!(encryption));
        let lab = builder.config("leaseSeconds", json!(LEASE)).up()?;
        let row = Row { lab, fabric: fabric.to_owned(), encryption: encryption.to_owned() };
        if row.carries() == IPSEC {
            row.lab.nodes().iter().try_for_each(|node| node.give_secret(Some(SECRET)))?;
        }
        row.lab.wait_for_matrix(PATIENCE)?;
        row.wait_until_carried()?;
        Ok(row)
    }

    /// What packets go by.
    fn carries(&self) -> &str {
        if self.encryption == "none" { &self.fabric } else { &self.encryption }
    }

    fn ping(&mut self) -> Result<()> {
        self.lab.matrix()?.check()
    }

    /// A packet with one byte in it, one of every size more, and none that is larger than pods' MTU.
    fn sizes(&mut self) -> Result<()> {
        let (from, to) = (self.lab.pod("a1")?.endpoint(), self.lab.pod("b1")?.endpoint());
        let mtu = self.lab.node("n1")?.status()?["podMtu"].as_u64().context("an MTU of pods")? as usize;
        for family in Family::BOTH {
            let headers = if family == Family::V4 { 28 } else { 48 };
            for bytes in headers + 1..=mtu {
                // Anybody may lose one: an emulated processor does.
                let passes = || ping(&from, to.address(family), bytes, ANSWER).is_ok();
                ensure!(passes() || passes(), "{family}: {bytes} bytes do not pass, and pods may send {mtu}");
            }
            let passes = ping(&from, to.address(family), mtu + 1, SILENCE).is_ok();
            ensure!(!passes, "{family}: {} bytes pass, and pods may send {mtu}", mtu + 1);
        }
        Ok(())
    }

    fn tcp(&mut self) -> Result<()> {
        let load = Load::new().tcp_bulk(around(&self.lab.pod_endpoints())).start()?;
        let_pass(STREAMS_RUN)?;
        let report = load.stop()?;
        ensure!(report.tcp.bytes > 1 << 20, "almost nothing was carried: {report}");
        report.check_nothing_lost()
    }

    fn restart(&mut self) -> Result<()> {
        self.unnoticed(|row| row.lab.node("n2")?.restart_agent().map(drop))
    }

    /// Of the agent, and of the program that carries packets, where there is one. What is encrypted to the keys of one that is
    /// killed is lost: there, packets have to get through again.
    fn kill(&mut self) -> Result<()> {
        let keeps_packets = self.carries() != WIREGUARD;
        self.unnoticed(|row| {
            let node = row.lab.node("n1")?;
            node.kill_agent()?;
            node.start_agent()?;
            node.wait_ready()?;
            if keeps_packets { row.kill_engines() } else { Ok(()) }
        })?;
        if !keeps_packets {
            self.kill_engines()?;
        }
        self.lab.wait_for_matrix(PATIENCE).map(drop)
    }

    fn kill_engines(&self) -> Result<()> {
        let node = self.lab.node("n1")?;
        let engines: BTreeSet<i32> = node.processes("tartan-engine")?.into_iter().collect();
        if engines.is_empty() {
            return Ok(());
        }
        for engine in &engines {
            node.output(&["kill", "-9", &engine.to_string()])?;
        }
        let again = || node.processes("tartan-engine").is_ok_and(|all| all.iter().any(|one| !engines.contains(one)));
        wait_for(PATIENCE, "another engine", again).map(drop)
    }

    /// Into another fabric and back; and where another way encrypts, into clear and back.
    fn change(&mut self) -> Result<()> {
        let other = if self.fabric == "vxlan" { "host-gw" } else { "vxlan" };
        self.unnoticed(|row| {
            let (fabric, encryption) = (row.fabric.clone(), row.encryption.clone());
            for fabric in [other, &fabric] {
                row.set("fabric", json!(fabric))?;
                row.fabric = fabric.to_owned();
                row.wait_until_carried()?;
            }
            for encryption in ["none", &encryption].into_iter().filter(|_| encryption != "none") {
                row.set("encryption", json!(encryption))?;
                row.encryption = encryption.to_owned();
                row.wait_until_carried()?;
            }
            Ok(())
        })
    }

    /// To a second device, and to a third: at the first one's port, where there are ports.
    fn rotation(&mut self) -> Result<()> {
        self.unnoticed(|row| {
            let mut seen = BTreeSet::new();
            let by_hand = row.carries().to_owned();
            for rotation in [1, 2] {
                seen.extend(row.instances()?);
                row.set(&by_hand, json!({"rotation": rotation}))?;
                let all_new = || row.instances().is_ok_and(|now| now.len() == 1 && now.is_disjoint(&seen));
                wait_for(PATIENCE, "new keys", all_new)?;
                row.wait_until_carried()?;
            }
            Ok(())
        })
    }

    /// Those by which nodes send.
    fn instances(&self) -> Result<BTreeSet<String>> {
        let by = self.lab.nodes().iter().map(Node::sends_by).collect::<Result<Vec<_>>>()?;
        Ok(by.into_iter().flatten().collect())
    }

    fn set(&mut self, key: &str, value: Value) -> Result<()> {
        self.lab.set_config(&Map::from_iter([(key.to_owned(), value)]))
    }

    /// A node goes without a word: the others notice nothing, and it comes back.
    fn loss(&mut self) -> Result<()> {
        let pods = [self.lab.pod("a1")?.endpoint(), self.lab.pod("b1")?.endpoint()];
        let pairs = [(pods[0].clone(), pods[1].clone()), (pods[1].clone(), pods[0].clone())];
        let load = Load::new().interval(self.interval()).udp(pairs.clone()).tcp_idle(pairs).start()?;
        load.wait_for_answers(PROBES, PATIENCE)?;
        let lost = self.lab.node("n3")?;
        lost.kill_agent()?;
        self.lab.underlay().unplug("n3")?;
        let gone = |node: &str| -> Result<bool> {
            let said = self.lab.node(node)?.status()?;
            Ok(peers(&said).any(|peer| peer["node"] == "n3" && peer["live"] == false))
        };
        wait_for(PATIENCE, "n3 to be missed", || ["n1", "n2"].iter().all(|node| gone(node).unwrap_or(false)))?;
        load.wait_for_answers(PROBES, PATIENCE)?;
        load.stop()?.check_nothing_lost()?;
        self.lab.underlay().replug("n3")?;
        lost.start_agent()?;
        lost.wait_ready()?;
        self.wait_until_carried()?;
        self.lab.wait_for_matrix(PATIENCE).map(drop)
    }

    fn interval(&self) -> Duration {
        if self.carries() == IPSEC { INTERVAL_OF_IPSEC } else { INTERVAL }
    }

    fn unnoticed(&mut self, event: impl FnOnce(&mut Row) -> Result<()>) -> Result<()> {
        let around = around(&self.lab.pod_endpoints());
        let load = Load::new().interval(self.interval()).udp(around.clone()).udp_mtu_sized([around[0].clone()]);
        let load = load.tcp_idle(around).start()?;
        load.wait_for_answers(PROBES, PATIENCE)?;
        event(self)?;
        load.wait_for_answers(PROBES, PATIENCE)?;
        load.stop()?.check_nothing_lost()
    }

    fn wait_until_carried(&self) -> Result<()> {
        self.wait_until_steady(self.carries())
    }

    /// Until nothing is left to do and all packets go by what has that in its name.
    fn wait_until_steady(&self, by: &str) -> Result<()> {
        let is_steady = |node: &Node| -> Result<bool> {
            let said = node.status()?;
            let carried = peers(&said).filter(|peer| peer["fabric"].as_str().is_some_and(|is| is.contains(by)));
            let all = carried.count() == 2 && peers(&said).count() == 2;
            Ok(all && said["phase"] == "steady" && said["fabric"] == self.fabric.as_str())
        };
        let all = || self.lab.nodes().iter().all(|node| is_steady(node).unwrap_or(false));
        wait_for(PATIENCE, &format!("every node to be steady on {} by {by}", self.fabric), all).map(drop)
    }
}

fn peers(status: &Value) -> impl Iterator<Item = &Value> {
    status["peers"].as_array().into_iter().flatten()
}
