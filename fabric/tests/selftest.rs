//! The path self-test on simulated paths: whatever breaks is named within ten seconds, and nothing else is.
//!
//! The twin is the path itself: what is wrong with it is known, and a finding is right if it is that.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tartan_fabric::Instance;
use tartan_fabric::selftest::{Finding, Path, Probe, Prober, Standing, Target, conditions, lose_checksums, passes};
use tartan_model::{Family, Passing};
use tartan_netstate::LinkName;

const MTU: u32 = 1450;
/// In which what is wrong must be named.
const NAMED: Duration = Duration::from_secs(10);
const VXLAN: Instance = Instance::Vxlan { underlay: Family::V4, vni: 1, port: 8472, gbp: false };

fn path(peer: u32) -> Path {
    (format!("n{peer}").into(), Family::V4)
}

fn target(peer: u32) -> Target {
    let [_, _, high, low] = peer.to_be_bytes();
    Target {
        at: VXLAN,
        fabric_address: IpAddr::from([10, high, low, 0]),
        underlay: IpAddr::from([192, 168, high, low]),
        itself_too: false,
        mtu: MTU,
        device: LinkName::new("ttx0"),
    }
}

/// What becomes of packets, as it really is; and of each hundred how many are lost beside, either way.
#[derive(Clone, Copy, Debug)]
struct Way {
    truth: Option<Finding>,
    lost: u64,
}

impl Way {
    /// Whether the probe is answered.
    fn carries(&self, probe: &Probe, chance: u64) -> bool {
        let to_underlay = matches!(probe, Probe::Echo { to, .. } if to.to_string().starts_with("192.168."));
        chance >= self.lost
            && match (self.truth, probe) {
                (None, _) => true,
                (Some(Finding::Blocked { .. }), _) => to_underlay,
                (Some(Finding::OneWay | Finding::Silent), _) => false,
                (Some(Finding::Checksum), Probe::Datagram { checksum, .. }) => !checksum,
                (Some(Finding::Narrow { largest }), Probe::Echo { bytes, .. }) => *bytes <= largest,
                (Some(Finding::Checksum | Finding::Narrow { .. }), _) => true,
            }
    }

    /// Whether what the peer asks is heard here.
    fn heard(&self) -> bool {
        !matches!(self.truth, Some(Finding::Blocked { heard: false } | Finding::Silent))
    }
}

struct Sim {
    prober: Prober,
    now: Instant,
    /// Answers on their way.
    coming: BTreeSet<(Instant, u64, IpAddr)>,
    ways: BTreeMap<IpAddr, Way>,
    chance: u64,
    asked: u64,
}

impl Sim {
    fn new(peers: u32) -> Sim {
        let now = Instant::now();
        let mut prober = Prober::new([1, 2]);
        prober.want((1..=peers).map(|peer| (path(peer), target(peer))).collect(), now);
        Sim { prober, now, coming: BTreeSet::new(), ways: BTreeMap::new(), chance: 1, asked: 0 }
    }

    /// A number that looks random (xorshift).
    fn chance(&mut self) -> u64 {
        for (left, by) in [(true, 13), (false, 7), (true, 17)] {
            self.chance ^= if left { self.chance << by } else { self.chance >> by };
        }
        self.chance
    }

    fn set(&mut self, peer: u32, way: Way) {
        let Target { fabric_address, underlay, .. } = target(peer);
        self.ways.insert(fabric_address, way);
        self.ways.insert(underlay, way);
    }

    /// Lets time pass. Returns how many rounds began.
    fn run(&mut self, time: Duration) -> usize {
        let (until, mut rounds) = (self.now + time, 0);
        // Every peer asks every third second, as this node does.
        let mut second = self.now;
        loop {
            let next = [self.prober.next(), self.coming.first().map(|(at, ..)| *at), Some(second)];
            let next = next.into_iter().flatten().min().unwrap();
            if next > until {
                self.now = until;
                return rounds;
            }
            self.now = self.now.max(next);
            if second <= self.now {
                second += Duration::from_secs(3);
                for peer in self.ways.iter().filter(|(_, way)| way.heard()).map(|(ip, _)| *ip).collect::<Vec<_>>() {
                    self.prober.heard(peer, self.now);
                }
            }
            while let Some((at, nonce, from)) = self.coming.first().copied()
                && at <= self.now
            {
                self.coming.pop_first();
                self.prober.answered(nonce, from, self.now);
            }
            for probe in self.prober.step(self.now) {
                let (Probe::Echo { to, nonce, .. } | Probe::Datagram { to, nonce, .. }) = probe;
                self.asked += 1;
                rounds += usize::from(matches!(probe, Probe::Datagram { checksum: true, .. }));
                let way = self.ways.get(&to).copied().unwrap_or(Way { truth: None, lost: 0 });
                let (chance, delay) = (self.chance() % 100, self.chance() % 80);
                if way.carries(&probe, chance) {
                    self.coming.insert((self.now + Duration::from_millis(1 + delay), nonce, to));
                }
                // What a pod could send: somebody else's address, or a number it made up.
                self.prober.answered(nonce, IpAddr::from([10, 0, 0, 9]), self.now);
                self.prober.answered(chance, to, self.now);
            }
        }
    }

    fn standing(&self, peer: u32) -> Standing {
        self.prober.standings()[&path(peer)].clone()
    }
}

fn truth() -> impl Strategy<Value = Option<Finding>> {
    prop_oneof![
        Just(None),
        any::<bool>().prop_map(|heard| Some(Finding::Blocked { heard })),
        Just(Some(Finding::OneWay)),
        Just(Some(Finding::Silent)),
        Just(Some(Finding::Checksum)),
        (64..MTU).prop_map(|largest| Some(Finding::Narrow { largest })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever breaks after whatever, at any moment, while each tenth packet is lost or none.
    #[test]
    fn what_breaks_is_named_within_ten_seconds_and_stays_named(
        truths in prop::collection::vec((truth(), 0..3_000_u64), 1..6),
        lost in prop_oneof![Just(0_u64), Just(10)],
        seed in 1_u64..,
    ) {
        let mut sim = Sim::new(2);
        sim.chance = seed;
        sim.set(2, Way { truth: None, lost });
        for (truth, later) in truths {
            let before = sim.standing(1).finding;
            sim.set(1, Way { truth, lost });
            // From one fault to the next it takes longer: what is heard once in a while has to be missed first. So it does
            // where a round may look well because the one packet that tells got lost for another reason.
            sim.run(if lost == 0 && (before.is_none() || truth.is_none()) { NAMED } else { 2 * NAMED });
            if lost == 0 {
                prop_assert_eq!(sim.standing(1).finding, truth);
            }
            for _ in 0..10 {
                sim.run(Duration::from_secs(1));
                let found = sim.standing(1).finding;
                let same_kind = found.map(|it| std::mem::discriminant(&it)) == truth.map(|it| std::mem::discriminant(&it));
                prop_assert!(if lost == 0 { found == truth } else { same_kind }, "{:?} is not {:?}", found, truth);
                prop_assert_eq!(sim.standing(2).finding, None, "its neighbour is well");
            }
            sim.run(Duration::from_millis(later));
        }
    }
}

/// A round in which everything was lost that could have shown the fault looks like one that is well, and tells nothing.
#[test]
fn what_is_found_stays_found_however_much_is_lost_beside() {
    for truth in [Finding::Checksum, Finding::Narrow { largest: 116 }, Finding::Blocked { heard: true }] {
        for seed in 1..=20 {
            let mut sim = Sim::new(1);
            sim.chance = seed << 32;
            sim.set(1, Way { truth: Some(truth), lost: 30 });
            sim.run(6 * NAMED);
            for _ in 0..600 {
                sim.run(Duration::from_secs(1));
                let found = sim.standing(1).finding.map(Finding::reason);
                assert_eq!(found, Some(truth.reason()), "seed {seed}");
            }
        }
    }
}

/// Every size, since what a search misses is a size between two of its steps.
#[test]
fn every_hole_is_measured_to_the_byte_in_time() {
    for largest in 64..MTU {
        let mut sim = Sim::new(1);
        sim.run(NAMED);
        sim.set(1, Way { truth: Some(Finding::Narrow { largest }), lost: 0 });
        sim.run(NAMED);
        assert_eq!(sim.standing(1).finding, Some(Finding::Narrow { largest }));
    }
}

#[test]
fn rounds_are_bounded_however_many_paths_there_are_and_however_ill() {
    for (peers, truth) in [(10, None), (256, None), (256, Some(Finding::Silent)), (256, Some(Finding::Checksum))] {
        let mut sim = Sim::new(peers);
        (1..=peers).for_each(|peer| sim.set(peer, Way { truth, lost: 0 }));
        for _ in 0..60 {
            let before = sim.asked;
            let rounds = sim.run(Duration::from_secs(1));
            let asked = sim.asked - before;
            // Of the second before and of this one; fifteen questions in a round that looks closer, and no sizes.
            assert!(
                rounds <= 2 * 3 * 50 && asked <= 2 * 50 * 15,
                "{peers} {truth:?}: {rounds} rounds, {asked} questions"
            );
        }
        let unknown = |(_, standing): &(&Path, &Standing)| standing.asked == 0;
        assert_eq!(sim.prober.standings().iter().filter(unknown).count(), 0, "every path has its turn in a minute");
    }
}

#[test]
fn a_finding_waits_until_a_new_peer_can_have_heard_of_this_node() {
    let mut sim = Sim::new(1);
    sim.set(1, Way { truth: Some(Finding::Blocked { heard: false }), lost: 0 });
    sim.run(Duration::from_millis(5_900));
    assert_eq!(sim.standing(1).finding, None);
    sim.set(1, Way { truth: None, lost: 0 });
    sim.run(NAMED);
    assert_eq!(sim.standing(1).finding, None);
    assert!(sim.standing(1).round_trip.unwrap() < Duration::from_millis(100));
}

#[test]
fn another_way_and_another_size_begin_anew() {
    let mut sim = Sim::new(1);
    sim.set(1, Way { truth: Some(Finding::Narrow { largest: 1400 }), lost: 0 });
    sim.run(NAMED);
    assert_eq!(sim.standing(1).finding, Some(Finding::Narrow { largest: 1400 }));
    let smaller = Target { mtu: 1400, ..target(1) };
    sim.prober.want(BTreeMap::from([(path(1), smaller)]), sim.now);
    sim.run(NAMED);
    assert_eq!(sim.standing(1).finding, None);
    sim.prober.want(BTreeMap::from([(path(1), Target { at: Instance::HostGw, ..target(1) })]), sim.now);
    assert_eq!((sim.standing(1).asked, sim.prober.standings().len()), (0, 1));
    sim.prober.want(BTreeMap::new(), sim.now);
    assert_eq!((sim.prober.next(), sim.prober.standings().len()), (None, 0));
}

/// What is said of a finding on the way to n1.
fn check(at: Instance, finding: Finding, reason: &str, parts: &[&str]) {
    let standing = |finding| Standing {
        target: Target { at, ..target(1) },
        finding,
        round_trip: None,
        asked: 0,
        lost: 0,
        well: 0,
        full: false,
    };
    let both = [Family::V4, Family::V6].map(|family| (("n1".into(), family), standing(Some(finding))));
    let told = conditions("me", &BTreeMap::from(both), &BTreeMap::new(), &BTreeSet::new());
    let [told] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((told.about.as_str(), told.reason), ("Node/n1", reason));
    let text = format!("{} Fix: {}", told.message, told.fix);
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let one = [(("n1".into(), Family::V4), standing(Some(finding))), (("n1".into(), Family::V6), standing(None))];
    let told = conditions("me", &BTreeMap::from(one), &BTreeMap::new(), &BTreeSet::new());
    assert!(told[0].message.ends_with("(so it is with packets of ipv4 alone)"), "{told:?}");
}

#[test]
fn every_finding_says_what_is_wrong_and_what_to_do() {
    let blocked = |heard| Finding::Blocked { heard };
    let port = "packets to UDP port 8472";
    check(VXLAN, blocked(false), "FabricBlocked", &[port, "answers at 192.168.0.1", "in both directions"]);
    check(VXLAN, blocked(true), "FabricBlocked", &[port, "from me to n1; what n1 sends so arrives"]);
    check(Instance::HostGw, blocked(false), "FabricBlocked", &["pods' own addresses", "source check"]);
    check(Instance::Ipip { underlay: Family::V6 }, blocked(false), "FabricBlocked", &["IP protocols 4 and 41"]);
    check(VXLAN, Finding::OneWay, "PathOneWay", &["what me sends to n1 does not arrive"]);
    check(VXLAN, Finding::Silent, "PeerSilent", &["nothing comes from n1"]);
    let narrow = Finding::Narrow { largest: 1350 };
    check(VXLAN, narrow, "PathMtuTooSmall", &["more than 1350 bytes", "send 1450", "underlayMTU to 1400"]);
    check(Instance::HostGw, narrow, "PathMtuTooSmall", &["underlayMTU to 1350"]);
    check(VXLAN, Finding::Checksum, "ChecksumsLost", &["ethtool -K"]);
}

/// Which devices' checksums are taken for wrong, by what is found on paths: of which peer, by which device.
fn check_checksums(found: &[(u32, Family, &str, Option<Finding>)], wanted: &[&str], told: &str) {
    let sum = |(peer, family, device, finding): &(u32, Family, &str, Option<Finding>)| {
        let (name, _) = path(*peer);
        let target = Target { device: LinkName::new(device), ..target(*peer) };
        let round_trip = Some(Duration::from_millis(1));
        ((name, *family), Standing { target, finding: *finding, round_trip, asked: 0, lost: 0, well: 0, full: true })
    };
    let standings: BTreeMap<Path, Standing> = found.iter().map(sum).collect();
    let wrong: Vec<String> = lose_checksums(&standings).iter().map(ToString::to_string).collect();
    assert_eq!(wrong, wanted, "{found:?}");
    let fixes = conditions("me", &standings, &BTreeMap::new(), &BTreeSet::new());
    let of_sums: Vec<_> = fixes.iter().filter(|told| told.reason == "ChecksumsLost").collect();
    assert!(of_sums.iter().all(|condition| condition.fix.contains(told)), "{told:?} is not in {of_sums:?}");
}

#[test]
fn a_device_sends_wrong_checksums_if_most_of_its_peers_lose_them() {
    let (v4, v6, lost) = (Family::V4, Family::V6, Some(Finding::Checksum));
    let (of_ours, of_theirs) = ("for the uplink", "look at the network card of n1");
    check_checksums(&[(1, v4, "ttx0", None)], &[], "");
    check_checksums(&[(1, v4, "ttx0", lost)], &["ttx0"], of_ours);
    check_checksums(&[(1, v4, "ttx0", lost), (2, v4, "ttx0", lost)], &["ttx0"], of_ours);
    // One peer is one peer, however many families it has.
    check_checksums(&[(1, v4, "ttx0", lost), (1, v6, "ttx0", lost), (2, v4, "ttx0", None)], &[], of_theirs);
    let one_of_three = [(1, v4, "ttx0", lost), (2, v4, "ttx0", None), (3, v4, "ttx0", None)];
    check_checksums(&one_of_three, &[], of_theirs);
    let two_of_three = [(1, v4, "ttx0", lost), (2, v4, "ttx0", None), (3, v4, "ttx0", lost)];
    check_checksums(&two_of_three, &["ttx0"], of_ours);
    let narrow = Some(Finding::Narrow { largest: 1349 });
    check_checksums(&[(1, v4, "ttx0", lost), (2, v4, "ttx0", narrow)], &[], of_theirs);
    // Who is not reached shows nothing.
    check_checksums(&[(1, v4, "ttx0", lost), (2, v4, "ttx0", Some(Finding::Silent))], &["ttx0"], of_ours);
    // Each device by itself.
    check_checksums(&[(1, v4, "ttx0", lost), (2, v4, "ttx1", None)], &["ttx0"], of_ours);
}

#[test]
fn thousands_of_peers_are_one_condition() {
    let mut sim = Sim::new(1);
    sim.set(1, Way { truth: Some(Finding::Silent), lost: 0 });
    sim.run(NAMED);
    let standing = sim.standing(1);
    let all: BTreeMap<Path, Standing> = (1..=5_000).map(|peer| (path(peer), standing.clone())).collect();
    let told = conditions("me", &all, &BTreeMap::new(), &BTreeSet::from([LinkName::new("ttx0").unwrap()]));
    assert_eq!(told.iter().map(|it| it.reason).collect::<Vec<_>>(), ["PeerSilent", "ChecksumOffloadOff"]);
    assert!(told[0].message.contains("n1, n10, n100, n1000, n1001, n1002, n1003, n1004 and 4992 more"), "{told:?}");
}

#[test]
fn a_way_that_stands_by_is_asked_by_its_link_and_is_good_after_five_rounds() {
    let start = Instant::now();
    let (mut now, mut prober) = (start, Prober::bound([1, 2]));
    prober.want(BTreeMap::from([(path(1), target(1))]), now);
    let mut run = |prober: &mut Prober, open: bool, until: Option<Passing>| {
        let began = now;
        while passes(&BTreeMap::new(), &prober.standings()).values().next().copied() != until {
            now = now.max(prober.next().unwrap());
            assert!(now < began + Duration::from_secs(60), "never {until:?}");
            for probe in prober.step(now) {
                let Probe::Echo { to, nonce, by, .. } = probe else { panic!("a datagram cannot be bound to a link") };
                let fabric = to == target(1).fabric_address;
                assert_eq!(by, target(1).device.filter(|_| fabric));
                if open || !fabric {
                    prober.answered(nonce, to, now);
                }
            }
        }
        now - began
    };
    let blocked = run(&mut prober, false, Some(Passing::Nothing));
    assert!(blocked < NAMED, "{blocked:?}");
    run(&mut prober, true, None);
    let back = run(&mut prober, true, Some(Passing::All));
    assert!((Duration::from_secs(6)..Duration::from_secs(20)).contains(&back), "{back:?}");
    run(&mut prober, false, None);
    run(&mut prober, false, Some(Passing::Nothing));
}

#[test]
fn a_way_that_stands_by_is_good_if_it_carries_what_every_way_has_to() {
    let check = |finding: Finding, wanted: Passing, told: &str| {
        let standing = Standing {
            target: target(1),
            finding: Some(finding),
            round_trip: None,
            asked: 0,
            lost: 0,
            well: 0,
            full: false,
        };
        let standing_by = BTreeMap::from([(path(1), standing)]);
        assert_eq!(passes(&BTreeMap::new(), &standing_by).into_values().collect::<Vec<_>>(), [wanted], "{finding:?}");
        let conditions = conditions("me", &BTreeMap::new(), &standing_by, &BTreeSet::new());
        let [condition] = conditions.as_slice() else { panic!("{conditions:?}") };
        let says = format!("{} Fix: {}", condition.message, condition.fix);
        assert!(condition.reason == "FabricFallback" && says.contains(told), "{told:?} is not in {says}");
    };
    let blocked = "packets to UDP port 8472 do not pass Fix: let packets to UDP port 8472 pass";
    check(Finding::Blocked { heard: true }, Passing::Nothing, blocked);
    check(Finding::Silent, Passing::Nothing, blocked);
    check(Finding::Narrow { largest: 1349 }, Passing::UpTo(1349), "those with more than 1349 bytes inside do not pass");
    check(Finding::Narrow { largest: 1280 }, Passing::UpTo(1280), "more than 1280 bytes");
    check(Finding::Narrow { largest: 1279 }, Passing::Nothing, "Fix: give every link on the way the MTU");
}

/// What a way is said to carry, each time after this many seconds of these faults.
fn check_words(runs: &[(Option<Finding>, u64, Option<Passing>)]) {
    let mut sim = Sim::new(1);
    for (truth, seconds, wanted) in runs {
        sim.set(1, Way { truth: *truth, lost: 0 });
        sim.run(Duration::from_secs(*seconds));
        let said = passes(&sim.prober.standings(), &BTreeMap::new()).into_values().next();
        assert_eq!(said, *wanted, "{truth:?} of {runs:?}");
    }
}

/// Before that the routes keep the MTU that they have.
#[test]
fn all_is_said_to_pass_once_a_packet_of_full_size_got_there() {
    let narrow = Some(Finding::Narrow { largest: 1349 });
    let up_to = Some(Passing::UpTo(1349));
    check_words(&[(narrow, 3, None), (narrow, 10, up_to), (None, 10, Some(Passing::All))]);
    check_words(&[(None, 3, Some(Passing::All)), (narrow, 10, up_to)]);
    // A peer that is away for a while says nothing of how large packets may be.
    for away in [Finding::Silent, Finding::OneWay] {
        check_words(&[(None, 3, Some(Passing::All)), (narrow, 10, up_to), (Some(away), 20, None), (narrow, 1, None)]);
    }
    check_words(&[(None, 3, Some(Passing::All)), (Some(Finding::Checksum), 10, Some(Passing::All))]);
}

#[test]
fn a_way_passes_unless_it_is_blocked() {
    let check = |findings: &[(Option<Finding>, bool)], wanted: Option<Passing>| {
        let standing = |(finding, full): &(Option<Finding>, bool)| Standing {
            target: target(1),
            finding: *finding,
            round_trip: None,
            asked: 0,
            lost: 0,
            well: 0,
            full: *full,
        };
        let families = Family::ALL.into_iter().map(|family| ("n1".into(), family));
        let all: BTreeMap<Path, Standing> = families.zip(findings.iter().map(standing)).collect();
        assert_eq!(passes(&all, &BTreeMap::new()).into_values().next(), wanted, "{findings:?}");
    };
    let blocked = Some(Finding::Blocked { heard: true });
    check(&[(None, false)], None);
    check(&[(None, true)], Some(Passing::All));
    // Of the other family it is not known.
    check(&[(None, true), (None, false)], None);
    check(&[(None, true), (Some(Finding::Silent), false)], Some(Passing::All));
    check(&[(blocked, true)], Some(Passing::Nothing));
    check(&[(None, true), (blocked, false)], Some(Passing::Nothing));
    // Where another way would be no better.
    for finding in [Finding::Silent, Finding::OneWay, Finding::Checksum] {
        check(&[(Some(finding), true)], Some(Passing::All));
        check(&[(Some(finding), false)], None);
    }
    let narrow = |largest| Some(Finding::Narrow { largest });
    check(&[(None, true), (narrow(1349), true)], Some(Passing::UpTo(1349)));
    check(&[(narrow(1348), true), (narrow(1349), true)], Some(Passing::UpTo(1348)));
    check(&[(narrow(1348), true), (blocked, false)], Some(Passing::Nothing));
}
