//! What a node pays for policy in a large cluster: 50,000 addresses, 1,000 ranges, 30,000 rows in the busiest set and 1,000
//! in each of 99 others, both directions. Times are printed and never asserted; what is asserted is that a change costs
//! the kernel a few steps.
//!
//! `cargo test --release -p tartan-kernel --test policy_scale -- --ignored --nocapture`

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::print_stdout, reason = "what is measured is printed")]

mod netns;

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netns::Netns;
use netns::node::{Lab, attachment, given, lab};
use tartan_datapath::nftables::policy::{Mode, Policy, held};
use tartan_kernel::nft::{Nft, phases};
use tartan_model::{Features, World};
use tartan_netstate::{Key, Object, Owner, State, Step, diff};
use tartan_policy::ir::{L4Match, Port, Ports, ProtocolIs};
use tartan_policy::verdicts::{Classes, Rows, Set, Tables, Word};
use tartan_policy::walk::Verdict;

const ADDRESSES: u32 = 50_000;
const IDENTITIES: u32 = 30_000;
const SETS: u32 = 100;
const RUNS: u32 = 50;
const SLICES: usize = 15;
const SLICE: Duration = Duration::from_millis(300);

const ALLOW: Word = Word::new(Verdict::Allow, 7);
const DENY: Word = Word::new(Verdict::Deny, 9);

fn rows(count: u32) -> Rows {
    let ports = |port| Ports { one_of: Some([Port::Range(port, port)].into()), none_of: [].into() };
    let wanted =
        [80, 443, 8080].map(|port| L4Match { destination: ports(port), ..L4Match::protocol(ProtocolIs::Is(6)) });
    let classes = Classes::of(&wanted.iter().collect::<Vec<_>>(), &BTreeSet::new());
    let any = (0..u32::try_from(classes.count()).unwrap()).map(|class| ((0, class), DENY));
    let http = classes.class(6, 80);
    let own = (0..count).map(|identity| ((16 + identity, http), ALLOW));
    Rows { words: any.chain(own).collect(), classes: classes.into(), ..Rows::default() }
}

fn tables() -> Tables {
    let mut tables = Tables { judged: true, ..Tables::default() };
    for number in 1..=SETS {
        let rows = rows(if number == 1 { IDENTITIES } else { 1_000 });
        tables.sets.insert(number, Arc::new(Set { ingress: rows.clone(), egress: rows }));
    }
    let address = |at: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + at));
    tables.addresses = (0..ADDRESSES).map(|at| (address(at), 16 + at % IDENTITIES)).collect();
    tables.ranges.insert("0.0.0.0/0".parse().unwrap(), 3);
    tables.ranges.insert("::/0".parse().unwrap(), 3);
    for at in 0..1_000_u32 {
        let net = format!("172.{}.{}.0/25", 16 + at / 256, at % 256).parse().unwrap();
        tables.ranges.insert(net, 40_000 + at);
    }
    for pod in ["default/p5", "default/p6"] {
        tables.subjects.insert(pod.into(), 1);
    }
    // Those of the lab's pods.
    for (number, identity) in [(5, 16), (6, 17)] {
        tables.addresses.insert(Ipv4Addr::new(10, 244, 1, number).into(), identity);
    }
    tables
}

/// Memory of this process, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
#[ignore = "it measures: minutes in a debug build"]
fn what_policy_costs_a_node_of_a_large_cluster() {
    let netns = Netns::new();
    let mut world = World::new("n1".into(), Features::default());
    world.attach(attachment(5, Vec::new()));
    let mut tables = tables();
    let mut policy = Policy::default();
    let (before, began) = (resident(), Instant::now());
    let mut wanted = policy.plan(&world, &tables, Mode::Enforce, &given().between_nodes).clone();
    println!(
        "first plan: {:?}, {} entries, {} bytes an entry",
        began.elapsed(),
        wanted.len(),
        (resident() - before) / wanted.len()
    );
    let began = Instant::now();
    let identities = held(&wanted).identities.len();
    println!("what maps hold, counted anew: {:?}, {identities} identities", began.elapsed());
    let apply = |from: &State, to: &State| {
        let mut change = diff(from, to, |_| true);
        if from.is_empty() {
            change.steps.insert(0, Step::create(Key::NftTable, Object::NftTable, Owner::Node));
        }
        let from = from.clone();
        netns.run(move || {
            let mut nft = Nft::open().unwrap();
            let began = Instant::now();
            let all = phases(&from, change.steps);
            let made = began.elapsed();
            all.iter().for_each(|steps| assert_eq!(nft.apply(steps), []));
            (all.iter().map(Vec::len).sum::<usize>(), made, began.elapsed())
        })
    };
    let (steps, _, took) = apply(&State::new(), &wanted);
    println!("first load: {took:?}, {steps} steps");
    let began = Instant::now();
    println!("nft list ruleset: {} bytes in {:?}", netns.sh("nft list ruleset").len(), began.elapsed());
    let began = Instant::now();
    netns.sh(
        "nft add table inet other; nft 'add chain inet other c; add rule inet other c drop'; nft list table inet other",
    );
    println!("nft, four commands about another table: {:?}", began.elapsed());
    let mut measure = |what: &str, most: usize, change: &dyn Fn(&mut Tables, u32)| {
        let [mut planned, mut ordered, mut applied] = [const { Vec::<Duration>::new() }; 3];
        for run in 0..RUNS {
            change(&mut tables, run);
            world.programmed.mirror = wanted.clone();
            let began = Instant::now();
            let next = policy.plan(&world, &tables, Mode::Enforce, &given().between_nodes).clone();
            planned.push(began.elapsed());
            let (steps, made, took) = apply(&wanted, &next);
            assert!(steps <= most, "{what}: {steps} steps");
            ordered.push(made);
            applied.push(took);
            wanted = next;
        }
        [&mut planned, &mut ordered, &mut applied].into_iter().for_each(|all| all.sort());
        let [half, last] = [planned.len() / 2, planned.len() - 1];
        println!(
            "{what}: planned {:?} (most {:?}), put in order {:?} (most {:?}), that and applied {:?} (most {:?})",
            planned[half], planned[last], ordered[half], ordered[last], applied[half], applied[last]
        );
    };
    measure("an address more", 1, &|tables, run| {
        tables.addresses.insert(Ipv4Addr::from(0x0b00_0000 + run).into(), 16 + run);
    });
    measure("an address less, and a new generation", 7, &|tables, run| {
        tables.addresses.remove(&IpAddr::from(Ipv4Addr::from(0x0b00_0000 + run)));
    });
    measure("a row more", 1, &|tables, run| {
        let mut set = Set::clone(&tables.sets[&1]);
        let https = set.ingress.classes.class(6, 443);
        set.ingress.words.insert((16 + run, https), ALLOW);
        tables.sets.insert(1, set.into());
    });
    measure("a range more, and perhaps a new generation", 24, &|tables, run| {
        tables.ranges.insert(format!("172.31.{run}.0/24").parse().unwrap(), 50_000 + run);
    });
    measure("the ports of a set of 1,000 rows cut anew, and a new generation", 10_000, &|tables, run| {
        let mut rows = rows(1_000);
        let ports = Ports { one_of: Some([Port::Range(9, 9 + run as u16)].into()), none_of: [].into() };
        let more = L4Match { destination: ports, ..L4Match::protocol(ProtocolIs::Is(6)) };
        rows.classes = Arc::new(Classes::of(&[&more], &BTreeSet::new()));
        let any = (0..u32::try_from(rows.classes.count()).unwrap()).map(|class| ((0, class), DENY));
        let own = (0..1_000).map(|identity| ((16 + identity, rows.classes.class(6, 9)), ALLOW));
        rows.words = any.chain(own).collect();
        tables.sets.insert(2, Set { ingress: rows.clone(), egress: rows }.into());
    });
}

/// Connections that one client makes, one after the other, with a word each way; and words on one connection.
fn rates(lab: &Lab) -> [f64; 2] {
    lab.pods[0].run(|| {
        let mut answer = [0; 64];
        let until = Instant::now() + SLICE;
        let (mut connections, began) = (0, Instant::now());
        while Instant::now() < until {
            let mut stream = TcpStream::connect("10.244.1.6:80").unwrap();
            while stream.read(&mut answer).unwrap() > 0 {}
            connections += 1;
        }
        let made = f64::from(connections) / began.elapsed().as_secs_f64();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("10.244.1.6:80").unwrap();
        let until = Instant::now() + SLICE;
        let (mut words, began) = (0, Instant::now());
        while Instant::now() < until {
            socket.send(b"?").unwrap();
            socket.recv(&mut answer).unwrap();
            words += 1;
        }
        [made, f64::from(words) / began.elapsed().as_secs_f64()]
    })
}

#[test]
#[ignore = "it measures, and takes half a minute"]
fn what_policy_costs_a_connection() {
    let none = Tables {
        judged: true,
        subjects: tables().subjects,
        sets: [(1_u32, Arc::new(everything()))].into_iter().collect(),
        ranges: tables().ranges.into_iter().filter(|(range, _)| range.prefix_len() == 0).collect(),
        ..Tables::default()
    };
    let mut many = tables();
    // UDP on one connection is allowed, too.
    let mut busiest = Set::clone(&many.sets[&1]);
    for rows in [&mut busiest.ingress, &mut busiest.egress] {
        rows.words.insert((0, rows.classes.class(17, 80)), ALLOW);
    }
    many.sets.insert(1, busiest.into());
    let labs: Vec<(&str, Lab)> = [("no table", None), ("0 policies", Some(none)), ("10,000", Some(many))]
        .into_iter()
        .map(|(name, tables)| {
            let lab = lab();
            if let Some(tables) = tables {
                let mut wanted =
                    Policy::default().plan(&lab.world, &tables, Mode::Enforce, &given().between_nodes).clone();
                wanted.insert(Key::NftTable, Object::NftTable, Owner::Node);
                let change = diff(&State::new(), &wanted, |_| true);
                assert_eq!(lab.node.change(move || Nft::open().unwrap().apply(&change.steps)), []);
            }
            (name, lab)
        })
        .collect();
    let mut found = vec![[Vec::new(), Vec::new()]; labs.len()];
    for _ in 0..SLICES {
        for ((_, lab), found) in labs.iter().zip(&mut found) {
            for (rate, all) in rates(lab).into_iter().zip(found) {
                all.push(rate);
            }
        }
    }
    for ((name, _), [mut made, mut said]) in labs.iter().zip(found) {
        made.sort_by(f64::total_cmp);
        said.sort_by(f64::total_cmp);
        println!("{name}: {:.0} connections, {:.0} words a second", made[SLICES / 2], said[SLICES / 2]);
    }
}

/// The set of pods that no policy selects.
fn everything() -> Set {
    let classes = Classes::of(&[], &BTreeSet::new());
    let words = [((0, classes.other), ALLOW)].into_iter().collect();
    let rows = Rows { words, classes: classes.into(), ..Rows::default() };
    Set { ingress: rows.clone(), egress: rows }
}
