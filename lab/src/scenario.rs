//! What a lab is to be: the value the builder fills and a YAML file spells.
//!
//! ```yaml
//! name: demo
//! nodes: 3
//! podsPerNode: 2
//! underlay: l2            # or: routed, racks
//! config: {fabric: vxlan} # spec of the NetworkConfig
//! ```

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::underlay;

/// Node numbers are a byte of its addresses; 251 and up are left to the underlay.
const MAX_NODES: u8 = 250;
/// Namespace names are files, but node names are also names of links (15 bytes).
const MAX_NAME: usize = 32;

/// What a lab is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scenario {
    /// Lower-case letters, digits and dashes; part of every name the lab leaves on the machine.
    pub name: String,
    /// How many nodes: n1, n2, …
    #[serde(default = "three")]
    pub nodes: u8,
    /// How many pods on each: a1, a2 on n1, b1, b2 on n2, …
    #[serde(default = "two")]
    pub pods_per_node: u8,
    /// How the nodes hang together.
    #[serde(default)]
    pub underlay: underlay::Kind,
    /// The spec of the NetworkConfig object named `default`.
    #[serde(default)]
    pub config: Map<String, Value>,
}

fn three() -> u8 {
    3
}

fn two() -> u8 {
    2
}

impl Scenario {
    /// Three nodes, two pods each, on one L2, every setting at its default.
    pub fn named(name: &str) -> Self {
        let (underlay, config) = (underlay::Kind::default(), Map::new());
        Self { name: name.to_owned(), nodes: three(), pods_per_node: two(), underlay, config }
    }

    /// Reads a scenario file.
    pub fn from_yaml(text: &str) -> Result<Self> {
        let scenario: Self = serde_yaml_ng::from_str(text).context("reading the scenario")?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Refuses what cannot be built.
    pub fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !self.name.is_empty() && self.name.len() <= MAX_NAME && self.name.chars().all(plain),
            "name: {:?} is part of namespace names: use up to {MAX_NAME} lower-case letters, digits and dashes",
            self.name
        );
        ensure!(
            (1..=MAX_NODES).contains(&self.nodes),
            "nodes: {} does not fit the address plan: use 1 to {MAX_NODES}",
            self.nodes
        );
        Ok(())
    }

    /// The names of the pods of node `number` (from 1).
    pub fn pod_names(&self, number: u8) -> Vec<String> {
        (1..=self.pods_per_node).map(|pod| pod_name(number, pod)).collect()
    }
}

/// Pods are called by a letter for the node and a digit: a1, a2, b1 … z9, aa1.
fn pod_name(node: u8, pod: u8) -> String {
    let mut letters = Vec::new();
    let mut rest = node;
    while rest > 0 {
        letters.insert(0, b'a' + (rest - 1) % 26);
        rest = (rest - 1) / 26;
    }
    format!("{}{pod}", String::from_utf8_lossy(&letters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_like_columns_of_a_sheet() {
        let check = |node, want: &str| assert_eq!(pod_name(node, 1), want);
        check(1, "a1");
        check(26, "z1");
        check(27, "aa1");
        check(52, "az1");
        check(250, "ip1");
    }

    #[test]
    fn yaml_fills_in_defaults_and_refuses_the_rest_by_name() {
        let minimal = Scenario::from_yaml("name: x").unwrap();
        assert_eq!(minimal, Scenario::named("x"));
        let full = Scenario::from_yaml(
            "name: x\nnodes: 5\npodsPerNode: 1\nunderlay: routed\nconfig: {fabric: host-gw, vxlan: {port: 4789}}",
        )
        .unwrap();
        assert_eq!((full.nodes, full.pods_per_node, full.underlay), (5, 1, underlay::Kind::Routed));
        assert_eq!(full.config["vxlan"]["port"], 4789);

        let refused = |yaml: &str, word: &str| {
            let error = format!("{:#}", Scenario::from_yaml(yaml).unwrap_err());
            assert!(error.contains(word), "{yaml}: {error}");
        };
        refused("nodes: 3", "name");
        refused("name: Demo", "lower-case");
        refused("name: a/b", "lower-case");
        refused("name: x\nnodes: 0", "1 to 250");
        refused("name: x\nnodes: 251", "1 to 250");
        refused("name: x\nunderlay: l3", "l3");
        refused("name: x\npods: 3", "pods");
        refused("name: [", "reading the scenario");
    }
}
