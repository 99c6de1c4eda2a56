//! What is said to differ between two sets of policies, on random clusters, held against every pair of ends and many
//! packets, judged one by one before and after; and what is said of one pod, against the same.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::test_runner::{TestCaseError, TestError};
use tartan_api::explain::{Difference, Group, Row, Verdict};
use tartan_model::World;
use tartan_policy::ir::{Direction, Program, protocol};
use tartan_policy::walk::{self, Packet};
use tartan_policy::{compare, effective, ends, trace};

use super::history::History;
use super::{generate, runner, setting};

/// Histories of an everyday run.
const EVERYDAY: u64 = 12;

fn play(check: impl Fn(&History) -> Result<(), String>) {
    let (seed, mut runner) = runner(setting("POLICY_CASES", EVERYDAY), 500);
    match runner.run(&generate::history(), |history| check(&history).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, history)) => panic!("POLICY_SEED={seed}: {reason}\n{history:?}"),
        Err(TestError::Abort(reason)) => panic!("POLICY_SEED={seed}: {reason}"),
    }
}

/// Both sides of everything that a generated rule names.
fn packets() -> Vec<Packet> {
    let ports = [0, 1, 2, 53, 54, 80, 81, 82, 8080, 8081, 65535];
    let with_ports = [protocol::TCP, protocol::UDP, protocol::SCTP]
        .into_iter()
        .flat_map(|protocol| ports.map(|destination| Packet { protocol, source_port: 0, destination }));
    let others = [protocol::ICMP, 47].map(|protocol| Packet { protocol, source_port: 0, destination: 0 });
    with_ports.chain(others).collect()
}

/// Whether words such as `tcp 1-79,81; all but tcp (IPv4)` are about a packet of the family.
fn covers(words: &str, packet: &Packet, is_v4: bool) -> bool {
    let (words, families) = match (words.strip_suffix(" (IPv4)"), words.strip_suffix(" (IPv6)")) {
        (Some(words), _) => (words, [true, false]),
        (_, Some(words)) => (words, [false, true]),
        _ => (words, [true, true]),
    };
    if !families[usize::from(!is_v4)] {
        return false;
    }
    let name = match packet.protocol {
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        protocol::SCTP => "sctp",
        _ => "",
    };
    words.split("; ").any(|part| match part.split_once(' ') {
        _ if part == "everything" => true,
        Some(("all", but)) => !but.trim_start_matches("but ").split(',').any(|it| it == name),
        None => part == name,
        Some((of, ranges)) => {
            of == name
                && ranges.split(',').any(|range| {
                    let (low, high) = range.split_once('-').unwrap_or((range, range));
                    let number = |text: &str| text.parse::<u16>().expect("a port");
                    (number(low)..=number(high)).contains(&packet.destination)
                })
        }
    })
}

#[test]
fn differences_are_those_of_every_pair_judged_one_by_one() {
    play(|history| {
        let state = history.states().last().expect("there is a first state");
        let now = state.world;
        let mut then = now.clone();
        then.policies = first_half(&now);
        let (now_program, then_program) = (trace::program(&now.policies), trace::program(&then.policies));
        let differences = compare::differences(&now, &then);
        let mut witnessed = vec![false; differences.len()];
        let pods = || now.pods.keys().map(|key| &**key);
        let everyone: Vec<&str> = pods().chain(now.nodes.keys().map(|name| &**name)).collect();
        // Of which group to which in which family there is a connection: two that claim one address may be all there is.
        let mut tried = BTreeSet::new();
        for (from, to) in everyone.iter().flat_map(|from| everyone.iter().map(move |to| (*from, *to))) {
            let is_own = now.pods.get(to).is_some_and(|pod| *pod.node == *from);
            if from != to && !is_own && (from.contains('/') || to.contains('/')) {
                let programs = (&now_program, &then_program);
                let families = pair(&now, programs, &differences, (from, to), &mut witnessed)?;
                tried.extend(families.into_iter().map(|is_v4| (group(&now, from), group(&now, to), is_v4)));
            }
        }
        let is_end = |group: &Group| group.pods > 0 || group.name.starts_with("node ");
        let shown = |it: &Difference| {
            let between = |is_v4| tried.contains(&(it.from.name.clone(), it.to.name.clone(), is_v4));
            [true, false]
                .into_iter()
                .filter(|is_v4| between(*is_v4))
                .any(|is_v4| packets().iter().any(|packet| covers(&it.packets, packet, is_v4)))
        };
        let groups: BTreeSet<String> = everyone.iter().map(|end| group(&now, end)).collect();
        for (difference, witnessed) in differences.iter().zip(witnessed) {
            let ends = [&difference.from, &difference.to];
            if let Some(nobody) = ends.iter().find(|it| is_end(it) && !groups.contains(&it.name)) {
                return Err(format!("nobody is in {nobody:?} of {difference:?}"));
            }
            if !witnessed && ends.iter().all(|it| is_end(it)) && shown(difference) {
                return Err(format!("no connection shows {difference:?}"));
            }
        }
        let same = compare::differences(&now, &now);
        if same.is_empty() { Ok(()) } else { Err(format!("nothing was changed, and {same:?}")) }
    });
}

/// Half of the policies go.
fn first_half(world: &World) -> imbl::OrdMap<tartan_model::ObjectId, std::sync::Arc<tartan_model::PolicyText>> {
    world
        .policies
        .iter()
        .enumerate()
        .filter(|(at, _)| at % 2 == 0)
        .map(|(_, (id, text))| (id.clone(), text.clone()))
        .collect()
}

/// Judges every connection from one to the other, and returns in which families there is one: `true` for IPv4.
fn pair(
    world: &World,
    (now, then): (&Program, &Program),
    differences: &[Difference],
    (from, to): (&str, &str),
    witnessed: &mut [bool],
) -> Result<BTreeSet<bool>, String> {
    let addresses = |end: &str| match end.contains('/') {
        true => ends::addresses_of(world, end),
        false => ends::find(world, now, end).map(|it| it.addresses).unwrap_or_default(),
    };
    let (sources, destinations) = (addresses(from), addresses(to));
    let both = sources.iter().flat_map(|source| destinations.iter().map(move |it| (*source, *it)));
    let mut families = BTreeSet::new();
    for (source, destination) in both.filter(|(source, to)| source.is_ipv4() == to.is_ipv4() && source != to) {
        families.insert(source.is_ipv4());
        for packet in packets() {
            let passes = |program| {
                let passes = |direction, pod: &str, own, other| {
                    let side = trace::side(world, program, direction, pod, own, other, &packet);
                    !pod.contains('/') || side.is_some_and(|side| walk::passes(side.decision.verdict))
                };
                passes(Direction::Egress, from, source, destination)
                    && passes(Direction::Ingress, to, destination, source)
            };
            let want = Some((passes(now), passes(then))).filter(|(now, then)| now != then);
            let is_about = |(_, it): &(usize, &Difference)| {
                it.from.name == group(world, from)
                    && it.to.name == group(world, to)
                    && covers(&it.packets, &packet, source.is_ipv4())
            };
            let about: Vec<(usize, &Difference)> = differences.iter().enumerate().filter(is_about).collect();
            let says = |it: &Difference| Some((it.now == Verdict::Allowed, it.then == Verdict::Allowed));
            let right = about.iter().filter(|(_, it)| says(it) == want);
            right.clone().for_each(|(at, _)| witnessed[*at] = true);
            // Of one group some may be treated unlike others, for the names of their ports.
            if want.is_some() && right.count() == 0 {
                return Err(format!(
                    "{from} ({source}) to {to} ({destination}), {packet:?}: {want:?}, and {about:?} of {differences:?}"
                ));
            }
        }
    }
    Ok(families)
}

/// What a group is called that an end is in.
fn group(world: &World, end: &str) -> String {
    let Some((namespace, _)) = end.split_once('/') else { return format!("node {end}") };
    let labels: Vec<String> = world.pods[end].labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { format!("{namespace} (no labels)") } else { format!("{namespace} {}", labels.join(",")) }
}

#[test]
fn rows_of_a_pod_are_what_is_judged() {
    play(|history| {
        let state = history.states().last().expect("there is a first state");
        let program = trace::program(&state.world.policies);
        for key in state.world.pods.keys() {
            let Ok(rows) = effective::rows(&state.world, &program, key) else { continue };
            let anyone = |row: &&Row| row.peers.iter().any(|peer| peer.starts_with("anyone"));
            let address = ends::addresses_of(&state.world, key)[0];
            for (direction, name) in [(Direction::Ingress, "ingress"), (Direction::Egress, "egress")] {
                for packet in packets() {
                    // Nobody whom a rule names: a documentation address that no generated range holds.
                    let nobody: IpAddr =
                        if address.is_ipv4() { "198.51.100.77" } else { "3fff::77" }.parse().expect("an address");
                    if program.values().flat_map(|policy| policy.all_rules()).any(|rule| names(rule, nobody)) {
                        continue;
                    }
                    let side = trace::side(&state.world, &program, direction, key, address, nobody, &packet);
                    let side = side.ok_or_else(|| format!("{key} has rows and no side"))?;
                    let about = |row: &&Row| row.direction == name && covers(&row.packets, &packet, true);
                    let row: Vec<&Row> = rows.iter().filter(anyone).filter(about).collect();
                    let [row] = row.as_slice() else {
                        return Err(format!("{key} {name} {packet:?}: {row:?} of {rows:?}"));
                    };
                    let line = side.decision.rule.map(|rule| (rule.source.to_string(), rule.path.to_string()));
                    let same = (row.verdict == Verdict::Allowed) == walk::passes(side.decision.verdict)
                        && line.unwrap_or_default() == (row.object.clone(), row.field.clone());
                    if !same {
                        return Err(format!("{key} {name} {packet:?}: {row:?}, and {:?}", side.decision.verdict));
                    }
                }
            }
        }
        Ok(())
    });
}

fn names(rule: &tartan_policy::ir::Rule, address: IpAddr) -> bool {
    rule.remote.terms().any(|term| match &term.is {
        tartan_policy::ir::Is::In(nets) => nets.all().any(|range| range.contains(&address)),
        _ => false,
    })
}
