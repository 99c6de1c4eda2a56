//! What looks after a network on each node: replaced, killed, taken away and brought back.
//!
//! Invariant: whoever was to be replaced or killed is another process when a function returns.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use tartan_lab::probe::{Running, wait_for};

use crate::cluster::Cluster;
use crate::life::{self, ANSWERS};
use crate::machine::Machine;
use crate::pods::PATIENCE;

/// One a node, one after another, each until it is ready.
const ROLL_PATIENCE: Duration = Duration::from_secs(180);

/// A DaemonSet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agents {
    namespace: &'static str,
    set: &'static str,
    /// How the command line of one begins.
    pub(crate) begins: &'static str,
}

pub(crate) const TARTAN: Agents =
    Agents { namespace: "tartan-system", set: "tartan-agent", begins: "/tartan\0agent\0" };
pub(crate) const FLANNEL: Agents = Agents { namespace: "kube-flannel", set: "kube-flannel-ds", begins: "/flannel\0" };

impl Agents {
    fn in_kubectl(self) -> [String; 2] {
        [format!("--namespace={}", self.namespace), format!("daemonset/{}", self.set)]
    }

    /// Replaces each by another one of the same kind: as [`Agents::roll`].
    pub(crate) fn restart(self, cluster: &Cluster) -> Result<Vec<String>> {
        let [namespace, set] = self.in_kubectl();
        self.roll(cluster, &["rollout", "restart", &namespace, &set])
    }

    /// Has kubectl replace the agents, node by node: which nodes went out of service meanwhile, and why.
    pub(crate) fn roll(self, cluster: &Cluster, how: &[&str]) -> Result<Vec<String>> {
        let (before, said) = (ready_since(cluster)?, last_words(cluster));
        self.replace(cluster, how)?;
        let (after, now) = (ready_since(cluster)?, last_words(cluster));
        ensure!(before.keys().eq(after.keys()), "there were other nodes before: {before:?}, {after:?}");
        let flipped = after.keys().filter(|node| before[*node] != after[*node]);
        let why = |node: &String| now.get(node).filter(|why| said.get(node) != Some(*why));
        Ok(flipped
            .map(|node| format!("{node}: {}", why(node).map_or("its kubelet does not say why", |it| it)))
            .collect())
    }

    fn replace(self, cluster: &Cluster, how: &[&str]) -> Result<()> {
        let before = self.processes(cluster);
        cluster.kubectl(how)?;
        cluster.wait_for_rollout(&self.in_kubectl()[0], self.set, ROLL_PATIENCE)?;
        let after = self.processes(cluster);
        let kept = before.iter().zip(&after).any(|(before, after)| before == after || after.is_none());
        ensure!(!kept, "the agents were {before:?} and are {after:?}: not each was replaced");
        Ok(())
    }

    /// Takes the agents away, leaves the pods to themselves for some answers, and brings the agents back.
    pub(crate) fn gone(self, cluster: &Cluster, load: &Running, manifest: &str) -> Result<()> {
        let [namespace, set] = self.in_kubectl();
        cluster.kubectl(&["delete", "--wait", &namespace, &set])?;
        wait_for(PATIENCE, "the end of all agents", || self.processes(cluster).iter().all(Option::is_none))?;
        load.wait_for_answers(10 * ANSWERS, PATIENCE)?;
        self.replace(cluster, &["apply", "--filename", manifest])
    }

    /// Kills one node's after the other, each until another one runs.
    pub(crate) fn kill(self, cluster: &Cluster) -> Result<()> {
        cluster.machines().iter().try_for_each(|machine| life::kill_process(cluster, &machine.name, self.begins))
    }

    fn processes(self, cluster: &Cluster) -> Vec<Option<i32>> {
        cluster.machines().iter().map(|machine| machine.process(self.begins.as_bytes())).collect()
    }
}

/// When each node last became ready, or ceased to be.
fn ready_since(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let since = "jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=='Ready')].lastTransitionTime}{'\\n'}{end}";
    let nodes = cluster.kubectl(&["get", "nodes", "--output", since])?;
    Ok(nodes.lines().filter_map(|line| line.split_once(' ')).map(|(name, at)| (name.into(), at.into())).collect())
}

/// What each node's kubelet said when it last took its node out of service.
fn last_words(cluster: &Cluster) -> BTreeMap<String, String> {
    let said = |machine: &Machine| Some((machine.name.clone(), machine.last_said("kubelet", "Node became not ready")?));
    cluster.machines().iter().filter_map(said).collect()
}
