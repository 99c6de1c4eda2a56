//! Which keys are due: a number that is counted up by hand, and by the nodes' clocks; and the cluster's secret.
//!
//! Every node finds the number for itself, from the configuration and the time: nobody has to write it, and clocks that differ
//! are nodes that hear of a change at different times. Keys of every second number share a port.
//!
//! Invariant: no two instances at one port are wanted at a time. Packets keep the one they go by, and a node whose due number
//! would need that port goes over to the number before first, which has the other port; with both ports in use, to what more
//! nodes hear of the two, so that all leave the same one. So a number that jumps, a node that missed some of them, and another
//! secret, or all of it at once, cost changes more and no packet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tartan_model::{Encryption, FabricMode, Family, PerFamily, World};

use crate::{Instance, wireguard};

/// The instance that this node can go over to now, over each family of underlay, where ports are held by these instances; and when
/// its clock counts on.
pub(crate) fn due<'a>(
    world: &World,
    holders: impl Iterator<Item = &'a Instance> + Clone,
    now: Instant,
) -> (PerFamily<Instance>, Option<Instant>) {
    let (counted, again) = counted(world, world.config.wireguard.rotate_after, now);
    let rotation = world.config.wireguard.rotation.wrapping_add(counted);
    let mut due = PerFamily::default();
    for underlay in Family::ALL {
        let number = |rotation| wireguard::instance(&world.config, underlay, rotation, world.secret);
        let port = Instance::port_alone;
        let in_the_way = |of: &Instance| holders.clone().find(|at| *at != of && port(at) == port(of)).copied();
        let (wanted, before) = (number(rotation), number(rotation.wrapping_sub(1)));
        let goes_over_to = match (in_the_way(&wanted), in_the_way(&before)) {
            (None, _) => wanted,
            (Some(_), None) => before,
            (Some(here), Some(there)) if hear(world, &here) > hear(world, &there) => here,
            (Some(_), Some(there)) => there,
        };
        due.set(underlay, goes_over_to);
    }
    (due, again)
}

/// The instance of IPsec that is due over each family of underlay, none without a secret; and when its clock counts on. No two
/// of them want the same.
pub(crate) fn due_of_ipsec(world: &World, now: Instant) -> (PerFamily<Instance>, Option<Instant>) {
    let config = &world.config;
    let asked_for = config.fabric == FabricMode::Ipsec || config.encryption == Encryption::Ipsec;
    let Some(psk) = world.secret.filter(|_| asked_for) else {
        return (PerFamily::default(), None);
    };
    let (counted, again) = counted(world, Some(config.ipsec.rotate_after), now);
    let rotation = config.ipsec.rotation.wrapping_add(counted);
    let mut due = PerFamily::default();
    let port = config.ipsec.port;
    Family::ALL.into_iter().for_each(|underlay| due.set(underlay, Instance::Ipsec { underlay, port, rotation, psk }));
    (due, again)
}

/// How many nodes say that they hear it.
fn hear(world: &World, at: &Instance) -> usize {
    let name = at.to_string();
    world.adverts.values().filter(|heard| heard.advert.endpoint(&name).is_some()).count()
}

/// How often the clock has counted, and when it will next.
fn counted(world: &World, every: Option<Duration>, now: Instant) -> (u32, Option<Instant>) {
    let (Some(every), Some(clock)) = (every, world.clock) else { return (0, None) };
    let (every, since) = (every.as_secs().max(1), clock.since_1970(now));
    let count = since.as_secs() / every;
    let again = now.checked_add(Duration::from_secs((count + 1).saturating_mul(every)).saturating_sub(since));
    // What matters of a number is that the next one is another.
    (count as u32, again)
}

/// Leaves out whatever wants a port that another one has. The first of these sets that knows one of them decides.
pub(crate) fn one_a_port(wanted: &mut BTreeSet<Instance>, first: [&BTreeSet<Instance>; 3]) {
    let rank = |at: &Instance| first.iter().position(|set| set.contains(at)).unwrap_or(first.len());
    let mut holders: BTreeMap<u16, Instance> = BTreeMap::new();
    for at in wanted.iter() {
        if let Some(port) = at.port_alone() {
            let holder = holders.entry(port).or_insert(*at);
            if rank(at) < rank(holder) {
                *holder = *at;
            }
        }
    }
    wanted.retain(|at| at.port_alone().is_none_or(|port| holders[&port] == *at));
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use tartan_model::{Clock, Config, Features, WireguardConfig};

    use super::*;

    fn at(port: u16, rotation: u32) -> Instance {
        Instance::Wireguard { underlay: Family::V4, port, rotation, psk: None }
    }

    /// Which number is due by hand's count and the clock's over IPv4, and in how many milliseconds that clock counts on.
    fn check(
        by_hand: u32,
        every: Option<u64>,
        clock: Option<Duration>,
        holders: &[Instance],
        wanted: (u32, Option<u64>),
    ) {
        let now = Instant::now();
        let mut world = World::new("n1".into(), Features::default());
        let rotate_after = every.map(Duration::from_secs);
        let wireguard = WireguardConfig { rotation: by_hand, rotate_after, ..world.config.wireguard.clone() };
        world.config = Config { wireguard, ..Config::default() }.into();
        world.clock = clock.map(|since| Clock::new(now, UNIX_EPOCH + since));
        let (due, again) = due(&world, holders.iter(), now);
        let again = again.map(|again| (again - now).as_millis() as u64);
        let Some(Instance::Wireguard { rotation, .. }) = due.v4 else { panic!("{due:?}") };
        assert_eq!((rotation, again), wanted, "{by_hand} {every:?} {clock:?} {holders:?}");
    }

    #[test]
    fn hand_and_clock_count_together() {
        let secs = |secs| Some(Duration::from_secs(secs));
        check(7, None, secs(1_000), &[], (7, None));
        check(7, Some(60), None, &[], (7, None));
        check(0, Some(60), secs(0), &[], (0, Some(60_000)));
        check(0, Some(60), Some(Duration::from_millis(59_999)), &[], (0, Some(1)));
        check(7, Some(60), secs(60), &[], (8, Some(60_000)));
        check(u32::MAX, Some(60), secs(90), &[], (0, Some(30_000)));
        // Clocks that nobody has set, and those of another age.
        check(1, Some(60), secs(60 << 32), &[], (1, Some(60_000)));
        assert_eq!(
            Clock::new(Instant::now(), SystemTime::UNIX_EPOCH - Duration::from_secs(9))
                .since_1970(Instant::now())
                .as_secs(),
            0
        );
    }

    #[test]
    fn who_has_missed_some_goes_by_the_number_before() {
        check(2, None, None, &[at(51820, 2), at(51822, 1)], (2, None));
        check(2, None, None, &[at(51822, 1)], (2, None));
        check(2, None, None, &[at(51820, 0)], (1, None));
        check(2, None, None, &[at(51820, 4), Instance::HostGw], (1, None));
        check(3, None, None, &[at(51822, 1), at(51820, 2)], (2, None));
        check(0, None, None, &[at(51820, 2)], (u32::MAX, None));
        // Nodes whose clocks differed go by both: all of them have to agree on which one they leave.
        check(12, None, None, &[at(51820, 8), at(51822, 9)], (9, None));
        check(12, None, None, &[at(51822, 9)], (12, None));
        // The other family's ports are its own.
        check(
            2,
            None,
            None,
            &[Instance::Wireguard { underlay: Family::V6, port: 51821, rotation: 0, psk: None }],
            (2, None),
        );
    }

    #[test]
    fn another_secret_takes_the_same_way() {
        let mut world = World::new("n1".into(), Features::default());
        world.secret = Some(7);
        let due = |holders: &[Instance]| due(&world, holders.iter(), Instant::now()).0.v4;
        let with_it = |port, rotation| Instance::Wireguard { underlay: Family::V4, port, rotation, psk: Some(7) };
        assert_eq!(due(&[with_it(51820, 0)]), Some(with_it(51820, 0)));
        assert_eq!(due(&[at(51820, 0)]), Some(with_it(51822, u32::MAX)));
        assert_eq!(due(&[at(51822, 1)]), Some(with_it(51820, 0)));
    }

    #[test]
    fn a_port_is_one_instances() {
        let set = |all: &[Instance]| all.iter().copied().collect::<BTreeSet<_>>();
        let check = |wanted: &[Instance], first: [&[Instance]; 3], left: &[Instance]| {
            let mut all = set(wanted);
            let [a, b, c] = first.map(set);
            one_a_port(&mut all, [&a, &b, &c]);
            assert_eq!(all, set(left), "{wanted:?} {first:?}");
        };
        let [zero, one, two, four] = [at(51820, 0), at(51822, 1), at(51820, 2), at(51820, 4)];
        check(&[zero, one, Instance::HostGw], [&[], &[], &[]], &[zero, one, Instance::HostGw]);
        check(&[zero, one, two], [&[zero], &[zero, two], &[two]], &[zero, one]);
        check(&[zero, two, four], [&[], &[two], &[four]], &[two]);
        check(&[zero, two, four], [&[], &[], &[four]], &[four]);
    }
}
