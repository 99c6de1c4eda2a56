//! Firewalls of others that drop forwarded packets: found, named, opened for pods, and left as they were.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use netns::node::{Lab, lab};
use netns::traffic::{Over, refused, sees};
use tartan_datapath::firewall::Firewall;
use tartan_kernel::KernelError;
use tartan_kernel::foreign::Foreign;
use tartan_kernel::linux::Linux;
use tartan_kernel::thread::{Applied, Handle, spawn};
use tartan_model::{Config, Features, ForwardBlock, HostFirewall, World};
use tartan_netstate::claims::{FOREIGN_RULE_COMMENT, FORWARD_OPENING_RULES};
use tartan_netstate::{Key, Object, Owner, State, Step};

const DOCKER: &str = include_str!("foreign/docker.rules");
const DOCKER6: &str = include_str!("foreign/docker6.rules");
const UFW: &str = include_str!("foreign/ufw.rules");
const FIREWALLD: &str = include_str!("foreign/firewalld.nft");

/// A firewall, and what is expected of it.
struct Case {
    /// Makes it, or reloads it, in the node's namespace.
    load: String,
    /// Shows all of it.
    save: &'static str,
    /// Family, table, chain, rule, place of each chain that blocks.
    blocks: Vec<[&'static str; 5]>,
}

fn blocks(lab: &Lab) -> Vec<ForwardBlock> {
    lab.node.run(|| settled(|foreign| foreign.blocks()))
}

fn openings(lab: &Lab) -> State {
    lab.node.run(|| settled(|foreign| foreign.read()))
}

/// Asks again where the answer was interrupted by a change: the agent under test changes things, too.
fn settled<T>(read: impl Fn(&mut Foreign) -> Result<T, KernelError>) -> T {
    let mut foreign = Foreign::open().unwrap();
    let answers = std::iter::repeat_with(|| read(&mut foreign)).take(1_000);
    answers.filter(|answer| !matches!(answer, Err(KernelError::Interrupted(_)))).map(Result::unwrap).next().unwrap()
}

fn key(block: &ForwardBlock) -> Key {
    Key::ForwardOpening { family: block.family.clone(), table: block.table.clone(), chain: block.place.clone() }
}

fn opening() -> Object {
    Object::ForwardOpening { intact: FORWARD_OPENING_RULES }
}

fn open_all(lab: &Lab) {
    let steps: Vec<_> = blocks(lab).iter().map(|block| Step::create(key(block), opening(), Owner::Node)).collect();
    lab.node.run(move || assert_eq!(Foreign::open().unwrap().apply(&steps), []));
}

fn close_all(lab: &Lab) {
    let steps: Vec<_> =
        openings(lab).iter().map(|(key, entry)| Step::delete(key.clone(), entry.object.clone(), Owner::Read)).collect();
    lab.node.run(move || assert_eq!(Foreign::open().unwrap().apply(&steps), []));
}

fn pods_are_cut(lab: &Lab) {
    let [pod1, _] = &lab.pods;
    refused(pod1, Over::Udp, "10.244.1.6:80");
    refused(pod1, Over::Udp, "[fd00:1::6]:80");
}

fn pods_talk(lab: &Lab) {
    let [pod1, pod2] = &lab.pods;
    sees(pod1, Over::Tcp, "10.244.1.6:80", "10.244.1.5");
    sees(pod2, Over::Tcp, "[fd00:1::5]:80", "fd00:1::6");
    sees(&lab.client, Over::Udp, "10.244.1.6:80", "192.0.2.2");
    sees(pod2, Over::Udp, "[2001:db8::2]:8080", "fd00:1::6");
}

fn check(case: &Case) {
    let lab = lab();
    pods_talk(&lab);
    assert_eq!(blocks(&lab), []);
    lab.node.sh(&case.load);
    let untouched = lab.node.sh(case.save);

    let found = blocks(&lab);
    let named: Vec<[&str; 5]> = found.iter().map(|b| [&*b.family, &*b.table, &*b.chain, &*b.rule, &*b.place]).collect();
    assert_eq!(named, case.blocks);
    assert!(found.iter().all(|block| !block.opened));
    pods_are_cut(&lab);

    // Twice: to open what is open changes nothing.
    for _ in 0..2 {
        open_all(&lab);
        assert!(blocks(&lab).iter().all(|block| block.opened), "{:?}", blocks(&lab));
        let wanted: Vec<_> = found.iter().map(|block| (key(block), opening())).collect();
        let read: Vec<_> = openings(&lab).iter().map(|(key, entry)| (key.clone(), entry.object.clone())).collect();
        assert_eq!(read, wanted);
        let rules = lab.node.sh(case.save).matches(FOREIGN_RULE_COMMENT).count();
        assert_eq!(rules, FORWARD_OPENING_RULES * found.len(), "{}", lab.node.sh(case.save));
    }
    pods_talk(&lab);

    // Their reload takes the rules away; that is seen, and they are put back.
    lab.node.sh(&case.load);
    assert!(openings(&lab).is_empty());
    assert!(blocks(&lab).iter().all(|block| !block.opened));
    open_all(&lab);
    pods_talk(&lab);

    close_all(&lab);
    assert_eq!(lab.node.sh(case.save), untouched);
    pods_are_cut(&lab);
    close_all(&lab);
}

fn restore(tool: &str, rules: &str) -> String {
    format!("{tool} <<'END'\n{rules}END\n")
}

#[test]
fn docker_with_iptables_nft() {
    check(&Case {
        load: restore("iptables-nft-restore", DOCKER) + &restore("ip6tables-nft-restore", DOCKER6),
        save: "iptables-nft -S; ip6tables-nft -S",
        blocks: vec![
            ["ip", "filter", "FORWARD", "policy drop", "DOCKER-USER"],
            ["ip6", "filter", "FORWARD", "policy drop", "DOCKER-USER"],
        ],
    });
}

#[test]
fn docker_with_iptables_legacy() {
    check(&Case {
        load: restore("iptables-legacy-restore", DOCKER) + &restore("ip6tables-legacy-restore", DOCKER6),
        save: "iptables-legacy -S; ip6tables-legacy -S",
        blocks: vec![
            ["ip6tables", "filter", "FORWARD", "policy drop", "DOCKER-USER"],
            ["iptables", "filter", "FORWARD", "policy drop", "DOCKER-USER"],
        ],
    });
}

#[test]
fn ufw() {
    for (tool, families) in [("nft", ["ip", "ip6"]), ("legacy", ["ip6tables", "iptables"])] {
        let place = |family: &str| if family.contains('6') { "ufw6-user-forward" } else { "ufw-user-forward" };
        check(&Case {
            load: restore(&format!("iptables-{tool}-restore"), &UFW.replace("UFW", "ufw"))
                + &restore(&format!("ip6tables-{tool}-restore"), &UFW.replace("UFW", "ufw6"))
                + &format!("ip6tables-{tool} -A INPUT -p icmpv6 -j ACCEPT"),
            save: if tool == "nft" {
                "iptables-nft -S; ip6tables-nft -S"
            } else {
                "iptables-legacy -S; ip6tables-legacy -S"
            },
            blocks: families.map(|family| [family, "filter", "FORWARD", "policy drop", place(family)]).to_vec(),
        });
    }
}

#[test]
fn firewalld() {
    check(&Case {
        load: restore("nft -f -", FIREWALLD),
        save: "nft -s list table inet firewalld",
        blocks: vec![["inet", "firewalld", "filter_FORWARD", "rule 9: reject", "filter_FORWARD"]],
    });
}

#[test]
fn a_rule_at_the_end_that_rejects_all() {
    let script = |tool: &str| {
        format!(
            "{tool} -F FORWARD; {tool} -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
             {tool} -A FORWARD -m comment --comment 'all the rest' -j REJECT\n"
        )
    };
    check(&Case {
        load: script("iptables-legacy") + &script("ip6tables-legacy"),
        save: "iptables-legacy -S; ip6tables-legacy -S",
        blocks: vec![
            ["ip6tables", "filter", "FORWARD", "rule 2: reject", "FORWARD"],
            ["iptables", "filter", "FORWARD", "rule 2: reject", "FORWARD"],
        ],
    });
}

#[test]
fn a_bare_policy() {
    for tool in ["nft", "legacy"] {
        let [v4, v6] = if tool == "nft" { ["ip", "ip6"] } else { ["iptables", "ip6tables"] };
        let mut blocks = vec![
            [v4, "filter", "FORWARD", "policy drop", "FORWARD"],
            [v6, "filter", "FORWARD", "policy drop", "FORWARD"],
        ];
        blocks.sort();
        check(&Case {
            load: format!("for t in iptables-{tool} ip6tables-{tool}; do $t -F FORWARD; $t -P FORWARD DROP; done"),
            save: if tool == "nft" {
                "iptables-nft -S; ip6tables-nft -S"
            } else {
                "iptables-legacy -S; ip6tables-legacy -S"
            },
            blocks,
        });
    }
}

#[test]
fn what_does_not_block_is_not_named() {
    let lab = lab();
    lab.node.sh("iptables-nft -A FORWARD -i never0 -j DROP
         iptables-legacy -A FORWARD -s 198.51.100.0/24 -j REJECT
         iptables-legacy -P INPUT DROP
         nft 'add table inet mine; add chain inet mine f { type filter hook forward priority 0; }
              add rule inet mine f ct state invalid drop
              add chain inet mine in { type filter hook input priority 0; policy drop; }'");
    assert_eq!(blocks(&lab), []);
    assert!(openings(&lab).is_empty());
}

#[test]
fn counters_of_a_legacy_table_survive() {
    let lab = lab();
    lab.node.sh(&restore("iptables-legacy-restore -c", "*filter\n:FORWARD DROP [7:700]\n:mine - [0:0]\n[5:500] -A FORWARD -i never0 -j mine\n[3:300] -A mine -j RETURN\nCOMMIT\n"));
    let before = lab.node.sh("iptables-legacy-save -c -t filter | grep -v '^#'");
    assert!(before.contains("[5:500] -A FORWARD"), "{before}");
    open_all(&lab);
    let opened = lab.node.sh("iptables-legacy-save -c -t filter | grep -v '^#'");
    assert!(opened.contains("[5:500] -A FORWARD -i never0 -j mine"), "{opened}");
    close_all(&lab);
    assert_eq!(lab.node.sh("iptables-legacy-save -c -t filter | grep -v '^#'"), before);
}

#[test]
fn a_rule_of_ours_that_was_changed_is_made_anew() {
    let check = |load: &str, spoil: &str| {
        let lab = lab();
        lab.node.sh(load);
        open_all(&lab);
        lab.node.sh(spoil);
        assert!(blocks(&lab).iter().all(|block| !block.opened), "not seen: {spoil}");
        open_all(&lab);
        assert!(blocks(&lab).iter().all(|block| block.opened), "{spoil}");
        pods_talk(&lab);
        close_all(&lab);
        assert!(openings(&lab).is_empty());
    };
    check("iptables-legacy -P FORWARD DROP", "iptables-legacy -D FORWARD 1");
    check(
        "iptables-legacy -P FORWARD DROP",
        &format!("iptables-legacy -R FORWARD 2 -i never0 -m comment --comment '{FOREIGN_RULE_COMMENT}' -j ACCEPT"),
    );
    check("iptables-nft -P FORWARD DROP", "iptables-nft -D FORWARD 2");
}

/// The agent's loop in small: what the kernel thread reports is planned, and what is planned is wanted.
struct Loop {
    handle: Handle,
    reports: Receiver<Applied>,
    firewall: Firewall,
    world: World,
    /// What the lab made by hand and looks like ours: it stays.
    rest: State,
    generation: u64,
    applied: u64,
}

impl Loop {
    fn new(lab: &Lab) -> Loop {
        let (sender, reports) = channel();
        let handle = lab
            .node
            .run(move || spawn(Box::new(Linux::open().unwrap()), move |applied| drop(sender.send(applied))).unwrap());
        let world = World::new("n1".into(), Features::default());
        Loop { handle, reports, firewall: Firewall::default(), world, rest: State::new(), generation: 0, applied: 0 }
    }

    fn set(&mut self, setting: HostFirewall) {
        self.world.config = Arc::new(Config { host_firewall: setting, ..Config::default() });
        self.want();
    }

    fn want(&mut self) {
        self.generation += 1;
        let mut state = self.rest.clone();
        state.merge(&self.firewall.plan(&self.world).state, &mut Vec::new());
        self.handle.want(self.generation, state);
    }

    /// Runs until things are as asked.
    fn until(&mut self, what: &str, are: impl Fn(&Loop) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !are(self) {
            assert!(Instant::now() < deadline, "{what}");
            let Ok(applied) = self.reports.recv_timeout(Duration::from_millis(20)) else { continue };
            assert_eq!(applied.failures, [], "{what}");
            self.applied = applied.generation;
            let is_opening = |key: &Key| matches!(key, Key::ForwardOpening { .. });
            let rest = applied.mirror.iter().filter(|(key, _)| !is_opening(key));
            self.rest = rest.map(|(key, entry)| (key.clone(), entry.clone())).collect();
            if self.world.host != applied.host || self.generation == 0 {
                self.world.host = applied.host;
                self.want();
            }
        }
    }
}

#[test]
fn the_kernel_thread_opens_keeps_open_and_closes() {
    for (load, by_hand) in [
        (restore("iptables-nft-restore", DOCKER), "iptables-nft -D DOCKER-USER 1".to_owned()),
        (restore("nft -f -", FIREWALLD), restore("nft -f -", FIREWALLD) + "nft add chain inet firewalld more"),
    ] {
        let lab = lab();
        let open = |wanted: bool| {
            let blocks = blocks(&lab);
            blocks.len() == 1 && blocks.iter().all(|block| block.opened == wanted)
        };
        let mut agent = Loop::new(&lab);
        lab.node.sh(&load);
        agent.until("opened", |_| open(true));
        pods_talk(&lab);
        // They reload, and somebody deletes rules by hand.
        for script in [&load, &by_hand, &load] {
            lab.node.sh(script);
            agent.until(&format!("opened again after {script}"), |_| open(true));
        }
        pods_talk(&lab);
        agent.set(HostFirewall::Report);
        agent.until("closed", |_| open(false));
        assert!(openings(&lab).is_empty());
        agent.until("reported", |agent| agent.firewall.clone().plan(&agent.world).conditions.len() == 1);
        agent.set(HostFirewall::Open);
        agent.until("opened once more", |_| open(true));
        pods_talk(&lab);
        // The agent goes; a new one finds the rules and keeps them.
        drop(agent);
        pods_talk(&lab);
        let before = lab.node.sh("nft -a list ruleset");
        let mut agent = Loop::new(&lab);
        agent.until("nothing to do", |agent| agent.applied > 0);
        assert_eq!(lab.node.sh("nft -a list ruleset"), before);
    }
}

#[test]
fn every_chain_of_others_has_a_name_and_ours_are_not_among_them() {
    let netns = netns::Netns::new();
    netns.sh(
        "nft 'table ip filter { chain INPUT { type filter hook input priority 0; policy drop; }; chain cali-FORWARD { }; }'; \
         nft 'table inet x { chain c { type filter hook input priority 0; }; }; table inet tartan { chain c { }; }'",
    );
    let chains = netns.run(|| settled(Foreign::chains));
    let names: Vec<String> =
        chains.iter().map(|it| format!("{} {} {} {}", it.family, it.table, it.name, it.drops_input)).collect();
    assert_eq!(names, ["inet x c false", "ip filter INPUT true", "ip filter cali-FORWARD false"]);
}
