//! Policy through Services, on the cluster of `services.rs`: a Service's address is judged as the pods behind it are,
//! by whom the client is before anybody hides it; and what others write into marks is left to them.
//!
//! Invariant: what is to be denied was answered before its policy came, by the same question.

use std::net::{IpAddr, SocketAddr};
use std::thread;

use anyhow::Result;
use serde_json::json;
use tartan_lab::Netns;
use tartan_lab::probe::wait_for;

use crate::cluster::Cluster;
use crate::pods::{self, PATIENCE, SERVER_PORT, in_, policy};
use crate::services::{PORT, SERVER, cluster_ips, curl, node_port};

/// Bits that neither Tartan nor kube-proxy takes: a packet's, and a connection's.
const FOREIGN: &str = "table inet foreign {
  counter kept { }
  counter lost { }
  chain write {
    type filter hook prerouting priority -140
    meta mark set meta mark | 0x00330000
    ct mark set ct mark | 0x00005a00
  }
  chain read {
    type filter hook forward priority 200
    meta mark & 0x00330000 == 0x00330000 ct mark & 0x00005a00 == 0x00005a00 counter name kept return
    counter name lost
  }
}";

/// One who asks, whom, and after which step it is answered.
struct Case {
    what: String,
    from: Netns,
    to: SocketAddr,
    /// By number of the step, the first of which has no policy.
    answered: [bool; STEPS],
}

/// None; the server's friends; friends and the outside; and friends of which one may reach the server only.
const STEPS: usize = 4;
const ALWAYS: [bool; STEPS] = [true; STEPS];
const UNLESS_JUDGED: [bool; STEPS] = [true, false, false, false];
const ONCE_NAMED: [bool; STEPS] = [true, false, true, true];
const UNTIL_EGRESS: [bool; STEPS] = [true, true, true, false];

/// Brings the policies one after another and asks after each.
pub(crate) fn hold(cluster: &Cluster) {
    for machine in cluster.machines() {
        machine.netns.nft(FOREIGN).unwrap();
    }
    let cases = cases(cluster).unwrap();
    let (_, outside) = cluster.outside().unwrap();
    let nets = outside.map(|ip| json!({"ipBlock": {"cidr": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })}}));
    let friends = json!({"podSelector": in_(&["near", "on-n1"])});
    for step in 0..STEPS {
        let mut from = vec![friends.clone()];
        from.extend(nets.iter().filter(|_| step >= 2).cloned());
        let mut policies = Vec::new();
        if step >= 1 {
            let rule = json!({"from": from, "ports": [{"port": SERVER_PORT}]});
            policies.push(policy("server", &[SERVER], json!({"policyTypes": ["Ingress"], "ingress": [rule]})));
        }
        if step >= 3 {
            let rule = json!({"to": [{"podSelector": in_(&[SERVER])}], "ports": [{"port": SERVER_PORT}]});
            policies.push(policy("client", &["on-n1"], json!({"policyTypes": ["Egress"], "egress": [rule]})));
        }
        if !policies.is_empty() {
            pods::apply(cluster, "policies.json", policies).unwrap();
        }
        check(&cases, step);
    }
    for machine in cluster.machines() {
        let counted = |counter: &str| {
            let said = machine.netns.output(&["nft", "list", "counter", "inet", "foreign", counter]).unwrap();
            let packets = said.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
            packets.unwrap_or_else(|| panic!("no counter in {said}"))
        };
        let (kept, lost) = (counted("kept"), counted("lost"));
        assert!(kept > 0 && lost == 0, "{}: of {kept} packets {lost} lost bits of others' marks", machine.name);
    }
}

fn cases(cluster: &Cluster) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut case = |what: String, from: &Netns, to: SocketAddr, answered| {
        cases.push(Case { what: format!("{what}, {to}"), from: from.clone(), to, answered });
    };
    let service = |ip: &String| -> Result<SocketAddr> { Ok(SocketAddr::new(ip.parse()?, PORT)) };
    let names = ["near", "stranger", "on-n1", "on-n3", SERVER];
    let pods = names.iter().map(|name| Ok((*name, netns_of(cluster, name)?))).collect::<Result<Vec<_>>>()?;
    for (web, other) in cluster_ips(cluster, "web").iter().zip(&cluster_ips(cluster, "other")) {
        for (name, netns) in &pods {
            let answered = if ["stranger", "on-n3"].contains(name) { UNLESS_JUDGED } else { ALWAYS };
            case(format!("{name} to the server's Service"), netns, service(web)?, answered);
            if *name == "on-n1" {
                case(format!("{name} to another Service"), netns, service(other)?, UNTIL_EGRESS);
            }
        }
        for machine in cluster.machines() {
            // A node may always reach its own pods.
            let answered = if machine.name == "n2" { ALWAYS } else { UNLESS_JUDGED };
            case(format!("node {} to the server's Service", machine.name), &machine.netns, service(web)?, answered);
        }
    }
    let (outside, _) = cluster.outside()?;
    let (web, local) = (node_port(cluster, "web"), node_port(cluster, "local"));
    for machine in cluster.machines() {
        let own = machine.name == "n2";
        for address in [IpAddr::from(machine.seat.v4.0), machine.seat.v6.0.into()] {
            let (web, local) = (SocketAddr::new(address, web), SocketAddr::new(address, local));
            // By another node it comes in that node's name.
            let answered = if own { ONCE_NAMED } else { UNLESS_JUDGED };
            case(format!("outside to {}'s port", machine.name), outside, web, answered);
            if own {
                case("outside to the local port of n2".into(), outside, local, ONCE_NAMED);
                for (name, answered) in [("near", ALWAYS), ("stranger", UNLESS_JUDGED)] {
                    case(format!("{name} to its node's port"), &netns_of(cluster, name)?, web, answered);
                }
            }
        }
    }
    Ok(cases)
}

/// All at once, until all is as it should be, and then once more: it must stay so.
fn check(cases: &[Case], step: usize) {
    let wrong = || -> Vec<String> {
        thread::scope(|scope| {
            let asked: Vec<_> = cases.iter().map(|case| scope.spawn(|| case.wrong(step))).collect();
            asked.into_iter().filter_map(|asked| asked.join().expect("a question does not panic")).collect()
        })
    };
    let mut last = Vec::new();
    let settled = wait_for(PATIENCE, "policy to hold", || {
        last = wrong();
        last.is_empty()
    });
    assert!(settled.is_ok(), "step {step}: {last:#?}");
    assert_eq!(wrong(), [""; 0], "step {step}, once more");
}

impl Case {
    fn wrong(&self, step: usize) -> Option<String> {
        let answer = curl(&self.from, self.to, "hostname");
        (answer.is_ok() != self.answered[step]).then(|| format!("{}: {answer:?}", self.what))
    }
}

fn netns_of(cluster: &Cluster, pod: &str) -> Result<Netns> {
    Ok(pods::endpoint(pod, &pods::uid(cluster, pod)?)?.netns)
}
