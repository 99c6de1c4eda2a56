//! A server that lets in what has a label, and clients that come up elsewhere: how soon the first connection of each comes
//! about, and whether anybody else's is cut meanwhile, or while agents and store go and come.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use tartan_lab::probe::{Load, Talk, Transport, wait_for};
use tartan_lab::{Attachment, Endpoint, Family, Lab, NAMESPACE, Netns, Network, Node, cni_args};

use crate::{PATIENCE, Series, Subject, binaries, lab, ms, unknown};

/// One attempt to connect; then the next.
const ATTEMPT: Duration = Duration::from_millis(20);
/// Probes that are answered before something happens, and after it.
const ANSWERS: u64 = 100;
const CLIENT: &[(&str, &str)] = &[("role", "client")];
const SERVER: &str = "a1";

/// Two nodes with a pod each; n1's is the server, n2's a client of old.
pub(crate) struct Policy {
    lab: Lab,
    clients: u32,
}

impl Policy {
    pub(crate) fn up() -> Result<Self> {
        let lab = lab("policy", 2, 1, "vxlan")?;
        lab.label_pod("b1", CLIENT)?;
        lab.put(&json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "clients", "namespace": NAMESPACE},
            "spec": {
                "podSelector": {"matchLabels": {"name": SERVER}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "client"}}}]}],
            },
        }))?;
        let (old, server) = (lab.endpoint("b1")?, lab.endpoint(SERVER)?);
        let open = || Talk::open(&(old.clone(), server.clone()), Family::V4, Transport::Tcp, ATTEMPT).is_ok();
        wait_for(PATIENCE, "the client of old to be let in", open).with_context(|| lab.troubleshooting())?;
        Ok(Self { lab, clients: 0 })
    }
}

impl Subject for Policy {
    /// `connect LAG-MS COUNT`: for each client that comes, ms from its addresses being known to its first connection; and
    /// how many probes and connections of the client of old were lost meanwhile. `restart|relist|away`: how many were
    /// lost by that.
    fn measure(&mut self, question: &[&str]) -> Result<Series> {
        match question {
            ["connect", lag, count] => {
                let (lag, count) = (Duration::from_millis(lag.parse()?), count.parse::<usize>()?);
                let (times, cut) =
                    self.watched(|it| (0..count).map(|_| it.client(lag)).collect::<Result<Vec<f64>>>())?;
                Ok(vec![times, vec![cut]])
            }
            ["restart"] => Ok(vec![vec![self.watched(|it| it.restart())?.1]]),
            ["relist"] => Ok(vec![vec![self.watched(|it| it.relist())?.1]]),
            ["away"] => Ok(vec![vec![self.watched(|it| it.away())?.1]]),
            _ => Err(unknown(question)),
        }
    }
}

impl Policy {
    /// Does it while the client of old talks; how many of its probes and connections were lost.
    fn watched<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<(T, f64)> {
        let old = (self.lab.endpoint("b1")?, self.lab.endpoint(SERVER)?);
        let load = Load::new().udp([old.clone()]).tcp_bulk([old.clone()]).tcp_idle([old]).start()?;
        load.wait_for_answers(ANSWERS, PATIENCE)?;
        let done = work(self)?;
        load.wait_for_answers(ANSWERS, PATIENCE)?;
        let report = load.stop()?;
        Ok((done, (report.udp.lost + report.tcp.resets + report.tcp.broken.len() as u64) as f64))
    }

    /// Each agent is killed and starts again.
    fn restart(&self) -> Result<()> {
        for node in self.lab.nodes() {
            node.kill_agent()?;
            node.start_agent()?;
            node.wait_ready()?;
        }
        Ok(())
    }

    /// All is listed anew, and what went meanwhile is seen to have gone: so the list is complete.
    fn relist(&self) -> Result<()> {
        let marker = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "marker"}});
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "marker", "namespace": "marker"},
            "spec": {"podSelector": {}},
        });
        self.lab.put(&marker)?;
        self.lab.put(&policy)?;
        self.wait_for_policies(2)?;
        self.lab.store_away()?;
        self.lab.store_back()?;
        self.lab.delete(&policy)?;
        self.lab.delete(&marker)?;
        self.wait_for_policies(1)
    }

    fn wait_for_policies(&self, count: u64) -> Result<()> {
        let know =
            || self.lab.nodes().iter().all(|node| policy_status(node, "policies").is_ok_and(|there| there == count));
        wait_for(PATIENCE, "all to know of the policies", know).map(drop).with_context(|| self.lab.troubleshooting())
    }

    /// Agents start while the store is away, and it comes back.
    fn away(&self) -> Result<()> {
        self.lab.store_away()?;
        self.restart()?;
        self.lab.store_back()?;
        self.relist()
    }

    /// A client on n2, as a kubelet and a slow API server bring it up. It tries to connect all the time, and is not let in
    /// before anybody here can know whose the address is. Gone again when it has connected.
    fn client(&mut self, lag: Duration) -> Result<f64> {
        self.clients += 1;
        let name = format!("client{}", self.clients);
        let node = self.lab.node("n2")?;
        let netns = Netns::create(&format!("{}{name}", self.lab.facts().prefix()))?;
        let at = Attachment {
            container: name.clone(),
            netns: netns.path(),
            ifname: "eth0".into(),
            args: cni_args(&name),
            runtime_config: Map::new(),
        };
        self.lab.put_pod("n2", &name, CLIENT, &[])?;
        let network = Network::tartan(node, &binaries()?.cni)?;
        let result = network.add(node, &at)?;
        let pair = (endpoint(&name, &netns, &result)?, self.lab.endpoint(SERVER)?);
        let connects = || Talk::open(&pair, Family::V4, Transport::Tcp, ATTEMPT).is_ok();
        let (ready, mut early) = (Instant::now(), false);
        wait_for(PATIENCE, "the API server to tell", || {
            early |= connects();
            early || ready.elapsed() >= lag
        })?;
        ensure!(!early, "{name} is let in before it is known");
        self.lab.put_pod("n2", &name, CLIENT, &[pair.0.v4.into(), pair.0.v6.into()])?;
        let known = Instant::now();
        wait_for(PATIENCE, "the first connection", connects).with_context(|| self.lab.troubleshooting())?;
        let took = known.elapsed();
        network.del(node, &at, Some(&result))?;
        netns.delete()?;
        // Its addresses will be another's: whom they belong to must not be in doubt.
        self.lab.delete(&json!({"kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}}))?;
        Ok(ms(took))
    }
}

/// A number of what the agent says of policy.
pub(crate) fn policy_status(node: &Node, what: &str) -> Result<u64> {
    let (program, socket) = (binaries()?.tartan, node.socket());
    let said =
        node.output(&[&program.to_string_lossy(), "status", "-o", "json", "--socket", &socket.to_string_lossy()])?;
    let said: Value = serde_json::from_str(&said)?;
    said["policy"][what].as_u64().with_context(|| format!("no policy.{what} in {said}"))
}

fn endpoint(name: &str, netns: &Netns, result: &Value) -> Result<Endpoint> {
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let bare = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse::<IpAddr>().ok();
    let (mut v4, mut v6) = (None::<Ipv4Addr>, None::<Ipv6Addr>);
    for address in ips.iter().filter_map(bare) {
        match address {
            IpAddr::V4(address) => v4 = Some(address),
            IpAddr::V6(address) => v6 = Some(address),
        }
    }
    let (v4, v6) = v4.zip(v6).with_context(|| format!("both families in {result}"))?;
    Ok(Endpoint { name: name.to_owned(), netns: netns.clone(), v4, v6 })
}
