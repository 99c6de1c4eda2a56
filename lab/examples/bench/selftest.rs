//! Paths that are broken on purpose: until they are named for what they are, and what else was said meanwhile.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tartan_lab::probe::wait_for;
use tartan_lab::{Lab, Node, Relay};

use crate::{PATIENCE, Series, Subject, lab, unknown};

/// How long it is watched what is said once a fault was named, and once it was mended.
const WATCHED: Duration = Duration::from_secs(5);
/// How long it is watched what is said while nothing is wrong.
const QUIET: Duration = Duration::from_secs(30);
const VXLAN_PORT: u16 = 8472;
/// What the narrow path carries, and what is left of it for pods.
const NARROW: u32 = 1400;
const PASSES: u32 = NARROW - 50;

const ALL: [(&str, &str); 6] = [("n1", "n2"), ("n1", "n3"), ("n2", "n1"), ("n2", "n3"), ("n3", "n1"), ("n3", "n2")];
const REASONS: [&str; 6] =
    ["FabricBlocked", "PathOneWay", "PeerSilent", "ChecksumsLost", "PathMtuTooSmall", "ChecksumOffloadOff"];

/// By which node, about which, for which reason.
type Said = BTreeSet<(String, String, String)>;

/// Three nodes by vxlan, each with a pod.
pub(crate) struct SelfTest {
    lab: Lab,
    card: Option<Relay>,
}

impl SelfTest {
    pub(crate) fn up() -> Result<Self> {
        let lab = lab("selftest", 3, 1, "vxlan")?;
        let tested = |path: &Value| path["roundTripMicros"].is_u64();
        let all_tested = |node: &Node| paths(node).is_ok_and(|paths| paths.len() == 4 && paths.iter().all(tested));
        wait_for(PATIENCE, "every path to be tested", || lab.nodes().iter().all(all_tested))?;
        Ok(Self { lab, card: None })
    }
}

impl Subject for SelfTest {
    /// The name of a fault → seconds until it is named; how much was said that is not so.
    fn measure(&mut self, question: &[&str]) -> Result<Series> {
        let &[fault] = question else { return Err(unknown(question)) };
        if fault == "none" {
            return Ok(vec![vec![0.0], vec![self.watch(QUIET, &Said::new())? as f64]]);
        }
        let wanted = wanted(fault).with_context(|| unknown(question))?;
        // That checksums are lost is so until they are computed by the kernel.
        let meanwhile = match fault {
            "bad-checksums" => said_by_all([("n1", "n2"), ("n1", "n3")], "ChecksumsLost"),
            _ => Said::new(),
        };
        let mut so = wanted.clone();
        so.extend(meanwhile);
        let since = Instant::now();
        self.happen(fault)?;
        let mut wrong = 0;
        let named = wait_for(PATIENCE, &format!("{fault} to be named"), || {
            let said = self.said().unwrap_or_default();
            wrong += said.difference(&so).count();
            said.is_superset(&wanted) && said.is_subset(&so) && self.is_measured(fault)
        });
        named.with_context(|| format!("{:?} is said\n{}", self.said(), self.lab.troubleshooting()))?;
        let took = since.elapsed().as_secs_f64();
        wrong += self.watch(WATCHED, &so)?;
        self.mend(fault)?;
        wait_for(PATIENCE, &format!("{fault} to be over"), || self.said().is_ok_and(|said| said.is_empty()))?;
        wrong += self.watch(WATCHED, &Said::new())?;
        Ok(vec![vec![took], vec![wrong as f64]])
    }
}

impl SelfTest {
    fn happen(&mut self, fault: &str) -> Result<()> {
        let underlay = self.lab.underlay();
        match fault {
            "mtu-hole" => underlay.set_path_mtu(Some(NARROW)),
            "port-blocked" => underlay.block_udp_port(Some(VXLAN_PORT)),
            "one-way-loss" => underlay.drop_one_way("n1", "n2"),
            _ => {
                self.card = Some(underlay.break_checksums("n1")?);
                Ok(())
            }
        }
    }

    fn mend(&mut self, fault: &str) -> Result<()> {
        let underlay = self.lab.underlay();
        match fault {
            "mtu-hole" => underlay.set_path_mtu(None),
            "port-blocked" => underlay.block_udp_port(None),
            "one-way-loss" => underlay.heal(),
            _ => {
                self.card = None;
                // Another device leaves checksums to the card again.
                let delete = "ip link del $(ip -o link show type vxlan | cut -d: -f2)";
                self.lab.node("n1")?.output(&["sh", "-c", delete]).map(drop)
            }
        }
    }

    /// Whether the size of a hole is known to the byte.
    fn is_measured(&self, fault: &str) -> bool {
        let measured = |path: &Value| path["largest"] == PASSES;
        fault != "mtu-hole"
            || self.lab.nodes().iter().all(|node| paths(node).is_ok_and(|paths| paths.iter().all(measured)))
    }

    /// How often something else than this was said in that time.
    fn watch(&self, time: Duration, so: &Said) -> Result<usize> {
        let (start, mut wrong) = (Instant::now(), 0);
        wait_for(time + PATIENCE, "time to pass", || {
            wrong += self.said().unwrap_or_default().difference(so).count();
            start.elapsed() >= time
        })?;
        Ok(wrong)
    }

    fn said(&self) -> Result<Said> {
        let mut said = Said::new();
        for node in self.lab.nodes() {
            let status = node.status()?;
            let text = |value: &Value| value.as_str().unwrap_or_default().trim_start_matches("Node/").to_owned();
            for condition in status["conditions"].as_array().into_iter().flatten() {
                if REASONS.iter().any(|reason| condition["reason"] == *reason) {
                    said.insert((node.name().to_owned(), text(&condition["about"]), text(&condition["reason"])));
                }
            }
        }
        Ok(said)
    }
}

/// What is to be said of a fault.
fn wanted(fault: &str) -> Option<Said> {
    Some(match fault {
        "mtu-hole" => said_by_all(ALL, "PathMtuTooSmall"),
        "port-blocked" => said_by_all(ALL, "FabricBlocked"),
        "one-way-loss" => &said_by_all([("n1", "n2")], "PathOneWay") | &said_by_all([("n2", "n1")], "PeerSilent"),
        "bad-checksums" => said_by_all([("n1", "n1")], "ChecksumOffloadOff"),
        _ => return None,
    })
}

fn said_by_all<const N: usize>(pairs: [(&str, &str); N], reason: &str) -> Said {
    pairs.iter().map(|(by, about)| ((*by).to_owned(), (*about).to_owned(), reason.to_owned())).collect()
}

/// All paths of a node.
fn paths(node: &Node) -> Result<Vec<Value>> {
    let status = node.status()?;
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    Ok(peers.iter().flat_map(|peer| peer["paths"].as_array().cloned().unwrap_or_default()).collect())
}
