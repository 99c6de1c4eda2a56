//! Whether the comparison would notice: the tables are made from objects that were misread in one point, the oracle sees
//! them as they are. Each of these points is one that implementations are known to get wrong.

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tartan_api::policy::{IpBlock, LabelSelector, Peer, Port, Requirement};

use super::history::{History, Op};
use super::{generate, verdicts_differ};

/// Histories in which each misreading has to show; most do within ten.
const PATIENCE: usize = 400;

type Misread = fn(&mut Op);

const MISREADINGS: [(&str, Misread); 15] = [
    ("policyTypes [Egress] isolates incoming connections, too", |op| {
        types(op, |types| {
            if *types == ["Egress"] {
                types.push("Ingress".to_owned())
            }
        });
    }),
    ("without policyTypes, egress rules are not looked at", |op| {
        types(op, |types| {
            if types.is_empty() {
                types.push("Ingress".to_owned())
            }
        });
    }),
    ("a port without protocol is of any protocol", |op| {
        ports(op, |ports| {
            let any = |port: Port| match port.protocol {
                Some(_) => vec![port],
                None => {
                    ["TCP", "UDP", "SCTP"].map(|it| Port { protocol: Some(it.to_owned()), ..port.clone() }).to_vec()
                }
            };
            *ports = std::mem::take(ports).into_iter().flat_map(any).collect();
        });
    }),
    ("endPort is ignored", |op| ports(op, |ports| ports.iter_mut().for_each(|port| port.end_port = None))),
    ("except is ignored", |op| peers(op, |peer| peer.ip_block.iter_mut().for_each(|block| block.except.clear()))),
    ("ipBlock is not about pods", |op| {
        peers(op, |peer| {
            let wide = |block: &&mut IpBlock| matches!(block.cidr.as_str(), "0.0.0.0/0" | "10.0.0.0/8");
            peer.ip_block.iter_mut().filter(wide).for_each(|block| block.except.push("10.0.0.0/16".to_owned()));
        });
    }),
    ("of two selectors in one peer, the namespaces' is ignored", |op| {
        peers(op, |peer| {
            if peer.pod_selector.is_some() {
                peer.namespace_selector = None
            }
        });
    }),
    ("a podSelector alone is about pods of all namespaces", |op| {
        peers(op, |peer| {
            if peer.pod_selector.is_some() {
                peer.namespace_selector.get_or_insert_default();
            }
        });
    }),
    ("a rule without peers is about nobody", |op| {
        if let Op::NetworkPolicy(policy) = op {
            policy.spec.ingress.retain(|rule| !rule.from.is_empty());
            // Where these make it one that speaks of egress, it stays one.
            let speaks = policy.spec.policy_types.is_empty() && !policy.spec.egress.is_empty();
            policy.spec.egress.retain(|rule| !rule.to.is_empty());
            if speaks {
                policy.spec.policy_types = ["Ingress", "Egress"].map(str::to_owned).to_vec();
            }
        }
    }),
    ("NotIn holds only where the label is there", |op| {
        selectors(op, |selector| {
            let not_in = selector.match_expressions.iter().filter(|it| it.operator == "NotIn");
            let exists: Vec<Requirement> = not_in
                .map(|it| Requirement { key: it.key.clone(), operator: "Exists".to_owned(), values: Vec::new() })
                .collect();
            selector.match_expressions.extend(exists);
        });
    }),
    ("a port's name counts for every protocol", |op| {
        if let Op::Pod(pod) = op {
            for container in &mut pod.spec.containers {
                for port in std::mem::take(&mut container.ports) {
                    let all = ["TCP", "UDP", "SCTP"].map(|it| {
                        let mut port = port.clone();
                        port.protocol = it.to_owned();
                        port
                    });
                    container.ports.extend(all);
                }
            }
        }
    }),
    ("a pod that has ended keeps its address", |op| {
        if let Op::Pod(pod) = op {
            pod.status.phase = "Running".to_owned();
        }
    }),
    ("Pass accepts", |op| {
        if let Op::Cluster(policy) = op {
            let rules = policy.spec.ingress.iter_mut().chain(&mut policy.spec.egress);
            rules.filter(|rule| rule.action == "Pass").for_each(|rule| rule.action = "Accept".to_owned());
        }
    }),
    ("a higher priority comes first", |op| {
        if let Op::Cluster(policy) = op {
            policy.spec.priority = 1000 - policy.spec.priority;
        }
    }),
    ("Baseline comes before NetworkPolicies", |op| {
        if let Op::Cluster(policy) = op {
            policy.spec.tier = "Admin".to_owned();
        }
    }),
];

#[test]
fn every_misreading_shows() {
    for (point, misread) in MISREADINGS {
        let mut runner =
            TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]));
        let strategy = generate::history();
        let mut histories = (0..PATIENCE).map(|_| strategy.new_tree(&mut runner).expect("a history").current());
        let shown = histories.position(|history| verdicts_differ(&history, &misread_all(&history, misread)));
        assert!(shown.is_some(), "nobody would notice in {PATIENCE} histories: {point}");
        println!("after {} histories: {point}", shown.unwrap_or_default() + 1);
    }
}

fn misread_all(history: &History, misread: Misread) -> History {
    let all = |ops: &[Op]| {
        let mut ops = ops.to_vec();
        ops.iter_mut().for_each(misread);
        ops
    };
    History { first: all(&history.first), then: all(&history.then) }
}

fn types(op: &mut Op, change: impl Fn(&mut Vec<String>)) {
    if let Op::NetworkPolicy(policy) = op {
        change(&mut policy.spec.policy_types);
    }
}

fn ports(op: &mut Op, change: impl Fn(&mut Vec<Port>)) {
    if let Op::NetworkPolicy(policy) = op {
        policy.spec.ingress.iter_mut().for_each(|rule| change(&mut rule.ports));
        policy.spec.egress.iter_mut().for_each(|rule| change(&mut rule.ports));
    }
}

fn peers(op: &mut Op, change: impl Fn(&mut Peer)) {
    if let Op::NetworkPolicy(policy) = op {
        let from = policy.spec.ingress.iter_mut().flat_map(|rule| &mut rule.from);
        from.chain(policy.spec.egress.iter_mut().flat_map(|rule| &mut rule.to)).for_each(change);
    }
}

fn selectors(op: &mut Op, change: impl Fn(&mut LabelSelector)) {
    peers(op, |peer| peer.pod_selector.iter_mut().chain(&mut peer.namespace_selector).for_each(&change));
    if let Op::NetworkPolicy(policy) = op {
        change(&mut policy.spec.pod_selector);
    }
}
