//! What leaves in clear, of pods that may send nothing in clear: while fabrics and keys change, and agents and engines end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use tartan_lab::probe::wait_for;
use tartan_lab::{Lab, Node};

use crate::restart::load;
use crate::{PATIENCE, Series, Subject, lab, unknown};

/// Three nodes with a pod each.
pub(crate) struct Strict {
    lab: Lab,
    rotation: u32,
}

impl Strict {
    pub(crate) fn up() -> Result<Self> {
        let mut strict = Self { lab: lab("strict", 3, 1, "vxlan")?, rotation: 0 };
        strict.set("encryption", json!("wireguard"))?;
        strict.set("strictEncryption", json!(true))?;
        strict.wait_until_encrypted("/key0")?;
        strict.lab.watch()?;
        Ok(strict)
    }

    fn set(&mut self, key: &str, value: Value) -> Result<()> {
        self.lab.set_config(&Map::from_iter([(key.to_owned(), value)]))
    }

    /// Until the kernels drop what would leave in clear, and everything goes by these keys.
    fn wait_until_encrypted(&self, keys: &str) -> Result<()> {
        let is_so = |node: &Node| -> Result<bool> {
            node.output(&["nft", "list", "chain", "inet", "tartan", "encrypted_only"])?;
            let said = node.status()?;
            let peers = said["peers"].as_array().context("a node has peers")?;
            let by_them = |peer: &Value| peer["fabric"].as_str().is_some_and(|by| by.ends_with(keys));
            Ok(said["phase"] == "steady" && peers.len() == 2 && peers.iter().all(by_them))
        };
        let all = || self.lab.nodes().iter().all(|node| is_so(node).unwrap_or(false));
        wait_for(PATIENCE, &format!("everything to go by {keys}"), all).map(drop)
    }

    fn happen(&mut self, event: &[&str]) -> Result<()> {
        match event {
            ["fabric", fabric, apart] => {
                self.lab.set_fabric_apart(fabric, Duration::from_secs(apart.parse()?))?;
            }
            ["rotate"] => {
                self.rotation += 1;
                self.set("wireguard", json!({"rotation": self.rotation}))?;
            }
            ["restart"] => self.lab.nodes().iter().try_for_each(|node| node.restart_agent().map(drop))?,
            ["kill"] => {
                for node in self.lab.nodes() {
                    node.kill_agent()?;
                    for engine in node.processes("tartan-engine")? {
                        node.output(&["kill", "-9", &engine.to_string()])?;
                    }
                    node.start_agent()?;
                }
            }
            other => return Err(unknown(other)),
        }
        self.wait_until_encrypted(&format!("/key{}", self.rotation))
    }
}

impl Subject for Strict {
    /// `PROBES EVENT…` → packets in clear, packets encrypted, while it happened and until so many probes were answered after it.
    fn measure(&mut self, question: &[&str]) -> Result<Series> {
        let [probes, event @ ..] = question else { return Err(unknown(question)) };
        let load = load(&self.lab)?;
        let before = self.lab.seen()?;
        self.happen(event).with_context(|| self.lab.troubleshooting())?;
        load.wait_for_answers(probes.parse()?, PATIENCE)?;
        load.stop()?;
        let after = self.lab.seen()?;
        let (clear, encrypted) = (after.clear - before.clear, after.encrypted - before.encrypted);
        ensure!(encrypted > 0, "nothing went by that was encrypted: the count says nothing");
        Ok(vec![vec![clear as f64, encrypted as f64]])
    }
}
