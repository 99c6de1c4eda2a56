//! A node in a cluster of 50,000 pods, with policies: two pods that one in a hundred of them selects beside two that none
//! does, and what the agent has in memory. And a node without, whose pods' packets go through the same rules as a list of nft.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tartan_lab::probe::{Talk, Transport, wait_for};
use tartan_lab::{Family, Lab, NAMESPACE};

use crate::load::Pair;
use crate::policy::policy_status;
use crate::scale::memory;
use crate::{Series, Subject, lab, unknown};

const PODS: u32 = 50_000;
/// What pods are called by rules: each is an identity, and where policies for 30,000 of them select a pod, a row of its set
/// in each direction.
const APPS: u32 = 30_000;
/// Of so many policies one selects the pods here, and is for so many times three apps.
const ONE_IN: u32 = 100;
const APPS_OF_RULE: u32 = 3;
/// Pods of one file of the store. The last of each file differs from all others, so that one can tell that it was read.
const PODS_OF_FILE: u32 = 1_000;
const FILES: u32 = PODS / PODS_OF_FILE;
/// Of three apps each, as many as the rows of 10,000 policies make.
const RULES_OF_LIST: u32 = 10_000;
/// For a list of everything, in a store of tens of megabytes.
const PATIENCE: Duration = Duration::from_secs(180);
const NODE: &str = "n1";
/// Client and server, by who judges them.
const PAIRS: [(&str, &str, &str); 2] = [("judged", "a1", "a2"), ("free", "a3", "a4")];

/// See the module.
pub(crate) struct Policies {
    lab: Lab,
    /// What the agent had in memory as all this came.
    bytes: Vec<f64>,
    identities: f64,
    rows: f64,
}

impl Policies {
    pub(crate) fn up(count: u32) -> Result<Self> {
        let lab = pods_of_a_node(&format!("policies{count}"))?;
        let mut up = Self { lab, bytes: Vec::new(), identities: 0.0, rows: 0.0 };
        // Where there is no policy at all no packet is asked: one that selects nobody, for the same chains.
        let numbers = if count == 0 { 1..2 } else { 0..count };
        up.put("policies", numbers.clone().map(policy))?;
        up.wait("policies", |there| there == numbers.len() as u64)?;
        let before = up.said("identities")?;
        up.note()?;
        up.put_pods(|number| is_last(number).then_some(number))?;
        up.wait("identities", |there| there >= before + u64::from(FILES))?;
        up.note()?;
        up.relist()?;
        up.bytes.push(memory(up.lab.node(NODE)?, "VmHWM")? * MIB);
        up.note()?;
        let alike = up.said("identities")?;
        up.put_pods(|number| Some(number % APPS))?;
        up.wait("identities", |there| there >= before + u64::from(APPS))?;
        up.note()?;
        up.identities = (up.said("identities")? - alike) as f64;
        let rows = up.said("rows")?;
        for pod in ["a1", "a2"] {
            up.lab.label_pod(pod, &[("app", "a0"), ("judged", "yes")])?;
        }
        up.wait_for_verdicts()?;
        up.note()?;
        up.rows = (up.said("rows")? - rows) as f64;
        Ok(up)
    }

    fn note(&mut self) -> Result<()> {
        self.bytes.push(memory(self.lab.node(NODE)?, "VmRSS")? * MIB);
        Ok(())
    }

    /// Documents as a file of the store.
    fn put(&self, name: &str, documents: impl Iterator<Item = Value>) -> Result<()> {
        let mut text = String::new();
        for document in documents {
            writeln!(text, "---\n{document}")?;
        }
        // Moved to where it is read once it is whole.
        let (new, file) = (self.file(&format!("{name}.new")), self.file(&format!("{name}.yaml")));
        fs::write(&new, text).and_then(|()| fs::rename(new, file)).context("writing into the store")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.lab.store_dir().join(name)
    }

    /// All pods elsewhere, with what they are called; none: as most are.
    fn put_pods(&self, app: impl Fn(u32) -> Option<u32>) -> Result<()> {
        for file in 0..FILES {
            let pods = (0..PODS_OF_FILE).map(|at| file * PODS_OF_FILE + at).map(|number| pod(number, app(number)));
            self.put(&format!("pods{file}"), pods)?;
        }
        Ok(())
    }

    /// A number of what the agent says of policy.
    fn said(&self, what: &str) -> Result<u64> {
        policy_status(self.lab.node(NODE)?, what)
    }

    fn wait(&self, what: &str, is: impl Fn(u64) -> bool) -> Result<()> {
        let there = || self.said(what).is_ok_and(&is);
        wait_for(PATIENCE, &format!("all {what}"), there)
            .map(drop)
            .with_context(|| format!("{what}: {:?}\n{}", self.said(what), self.lab.troubleshooting()))
    }

    /// Those that are judged reach each other, and nobody else reaches them.
    fn wait_for_verdicts(&self) -> Result<()> {
        let opens = |from: &str, to: &str, by| -> Result<bool> {
            let pair = (self.lab.endpoint(from)?, self.lab.endpoint(to)?);
            Ok(Talk::open(&pair, Family::V4, by, Duration::from_millis(200)).is_ok())
        };
        let settled = || -> Result<bool> {
            let reach = Transport::BOTH.into_iter().map(|by| opens("a1", "a2", by)).collect::<Result<Vec<bool>>>()?;
            Ok(reach.into_iter().all(|open| open) && !opens("a3", "a2", Transport::Tcp)?)
        };
        wait_for(PATIENCE, "the policies to be in force", || settled().is_ok_and(|it| it))
            .map(drop)
            .with_context(|| self.lab.troubleshooting())
    }

    /// Makes the agent list everything once more, and waits for the end of it: what goes meanwhile is gone only then.
    fn relist(&self) -> Result<()> {
        let there = self.said("identities")?;
        self.put("one_more", [pod(PODS, Some(PODS))].into_iter())?;
        self.wait("identities", |now| now > there)?;
        self.lab.store_away()?;
        self.lab.store_back()?;
        fs::remove_file(self.file("one_more.yaml"))?;
        self.wait("identities", |now| now == there)
    }
}

const MIB: f64 = (1 << 20) as f64;

impl Subject for Policies {
    /// `judged|free tcp|rr|crr|pps`, or `memory`: bytes of the agent with the policies alone, then with pods that are alike
    /// for them, at most while these are listed once more, and after that, with pods that are not alike, and with two pods
    /// that are judged; and how many pods, identities and rows that are.
    fn measure(&mut self, question: &[&str]) -> Result<Series> {
        match question {
            ["memory"] => Ok(vec![self.bytes.clone(), vec![PODS.into(), self.identities, self.rows]]),
            _ => between(&self.lab, question),
        }
    }
}

/// A node whose pods' packets go through 10,000 rules as a list; those of the second pair behind what lets pass all of
/// connections that are there.
pub(crate) struct Linear {
    lab: Lab,
}

impl Linear {
    pub(crate) fn up() -> Result<Self> {
        let lab = pods_of_a_node("linear")?;
        let text = list(&lab)?;
        lab.node(NODE)?.netns().nft(&text)?;
        Ok(Self { lab })
    }
}

impl Subject for Linear {
    /// As of [`Policies`].
    fn measure(&mut self, question: &[&str]) -> Result<Series> {
        between(&self.lab, question)
    }
}

fn between(lab: &Lab, question: &[&str]) -> Result<Series> {
    let &[pair, what] = question else { return Err(unknown(question)) };
    let found = PAIRS.iter().find(|(name, ..)| *name == pair);
    let (_, client, server) = found.with_context(|| unknown(question))?;
    let (client, server) = (lab.pod(client)?, lab.pod(server)?.endpoint());
    let pair = Pair { client: client.netns().clone(), server: server.netns, address: server.v4 };
    Ok(vec![vec![pair.measure(what)?]])
}

fn pods_of_a_node(name: &str) -> Result<Lab> {
    let lab = lab(name, 1, 4, "host-gw")?;
    for pod in lab.pods() {
        // As for paths: connections in TIME_WAIT.
        pod.netns().sysctl("ipv4/ip_local_port_range", "1024 65535")?;
    }
    Ok(lab)
}

fn is_last(number: u32) -> bool {
    number % PODS_OF_FILE == PODS_OF_FILE - 1
}

fn addresses(number: u32) -> [IpAddr; 2] {
    let [_, high, middle, low] = number.to_be_bytes();
    let v6 = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, (number >> 16) as u16, number as u16);
    [Ipv4Addr::new(10, 64 + high, middle, low).into(), v6.into()]
}

fn pod(number: u32, app: Option<u32>) -> Value {
    let ips: Vec<Value> = addresses(number).iter().map(|ip| json!({"ip": ip})).collect();
    let app = app.map_or_else(|| "other".to_owned(), |app| format!("a{app}"));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("{app}-5d8c7b9f6c-{number:05}"),
            "namespace": NAMESPACE,
            "labels": {"app": app, "pod-template-hash": "5d8c7b9f6c", "version": "v1"},
        },
        "spec": {"nodeName": format!("m{}", number % 1_000), "serviceAccountName": "default"},
        "status": {"phase": "Running", "podIPs": ips},
    })
}

/// Lets apps in and out: of the pods here, or of others. The first lets them by UDP, too.
fn policy(number: u32) -> Value {
    let (subject, apps) = match number % ONE_IN {
        0 => (json!({"judged": "yes"}), number * APPS_OF_RULE..(number + ONE_IN) * APPS_OF_RULE),
        _ => (json!({"app": format!("a{number}")}), apps(number)),
    };
    let apps: Vec<String> = apps.map(|app| format!("a{app}")).collect();
    let peers = json!([{"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": apps}]}}]);
    let all = |protocol: &str| json!({"protocol": protocol, "port": 1, "endPort": 65_535});
    let ports: Vec<Value> = ["TCP", "UDP"][..if number == 0 { 2 } else { 1 }].iter().map(|it| all(it)).collect();
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": format!("p{number}"), "namespace": NAMESPACE},
        "spec": {
            "podSelector": {"matchLabels": subject},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": ports}],
            "egress": [{"to": peers, "ports": ports}],
        },
    })
}

fn apps(rule: u32) -> std::ops::Range<u32> {
    rule * APPS_OF_RULE..(rule + 1) * APPS_OF_RULE
}

/// What 10,000 policies let a pod do as rules, one for three apps and a direction, by address. Those in the middle have the
/// lab's pods, so that half of the list is asked.
fn list(lab: &Lab) -> Result<String> {
    let own: Vec<String> = lab.pods().iter().map(|pod| pod.endpoint().v4.to_string()).collect();
    let rule = |end: &str, number: u32| {
        let apps = apps(number);
        let [first, last] = [apps.start, apps.end - 1].map(|pod| addresses(pod)[0]);
        match number == RULES_OF_LIST / 2 {
            true => format!("ip {end} {{ {} }} tcp dport 1-65535 return", own.join(", ")),
            false => format!("ip {end} {first}-{last} tcp dport 1-65535 return"),
        }
    };
    let chain = |name: &str, end: &str| {
        let rules: Vec<String> = (0..RULES_OF_LIST).map(|number| rule(end, number)).collect();
        format!("chain {name} {{\n{}\ndrop\n}}\n", rules.join("\n"))
    };
    let behind = format!("ip saddr {{ {}, {} }} ct state established accept", own[2], own[3]);
    let asked = ["egress", "ingress"].map(|chain| format!("ip saddr {{ {} }} jump {chain}", own.join(", "))).join("\n");
    Ok(format!(
        "table inet linear {{\n{}{}chain forward {{\ntype filter hook forward priority 1;\n{behind}\n{asked}\n}}\n}}\n",
        chain("egress", "daddr"),
        chain("ingress", "saddr"),
    ))
}
