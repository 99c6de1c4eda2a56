//! Our nft table on the real kernel: written, listed by nft, read back, repaired.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use netns::Netns;
use tartan_kernel::nft::Nft;
use tartan_kernel::{Failure, KernelError};
use tartan_netstate::claims::NFT_EPOCH_MAP;
use tartan_netstate::nft::{
    AddressSide, Chain, ChainKind, CtKey, ElementData, ElementKey, Expr, Fields, Groups, HookPoint, MetaKey, Nfproto,
    Reg, Rule, Selector, Set, SetName, Type, Verdict, rule,
};
use tartan_netstate::{Key, Object, Owner, State, Step, diff, epoch};

const GROUPS: Groups = Groups { mask: !2, value: 4 };

/// A table with every kind of object and expression there is.
fn sample() -> State {
    use Nfproto::{Ipv4, Ipv6};
    use Selector::{Daddr, Dport, L4proto, Saddr};
    let mut state = State::new();
    let mut put = |key, object| state.insert(key, object, Owner::Node);
    let mut set = |name: &str, set: Set| put(Key::NftSet { set: name.into() }, Object::NftSet(set.into()));
    set("nets4", Set::intervals(Type::Ipv4Addr));
    set("nets6", Set::intervals(Type::Ipv6Addr));
    set("pairs4", Set::exact(&[Type::Ipv4Addr, Type::Ipv4Addr]));
    set("ports4", Set::map(&[Type::InetProto, Type::InetService], &[Type::Ipv4Addr, Type::InetService]));
    set(
        "ports6",
        Set::map(&[Type::Ipv6Addr, Type::InetProto, Type::InetService], &[Type::Ipv6Addr, Type::InetService]),
    );
    set("classes", Set::interval_map(Type::Integer(12), &[Type::Mark]));
    set("pairs_of_links4", Set::exact(&[Type::Ifname, Type::Ipv4Addr]));
    set("judged", Set::counts(Type::Mark));
    set("kinds", Set::exact(&[Type::Icmpv6Type]));
    set("links4", Set::map(&[Type::Ifname, Type::Ipv4Addr], &[Type::Mark]));
    set("marks", Set::map(&[Type::Mark, Type::Mark], &[Type::Mark]));
    set("ranges6", Set::interval_map(Type::Ipv6Addr, &[Type::Mark]));
    set("verdicts", Set::verdict_map(&[Type::Mark]));
    let mut chain =
        |name: &str, chain: Chain| put(Key::NftChain { chain: name.into() }, Object::NftChain(chain.into()));
    chain(
        "ports",
        Chain::regular(vec![
            rule("by port").dnat_to_map(Ipv4, &[L4proto, Dport], "ports4"),
            rule("by address and port").dnat_to_map(Ipv6, &[Daddr, L4proto, Dport], "ports6"),
        ]),
    );
    chain("end", Chain::regular(vec![]));
    chain("judge", Chain::regular(judging()));
    chain(
        "prerouting",
        Chain::base(
            ChainKind::Nat,
            HookPoint::Prerouting,
            -100,
            vec![rule("").fib_local(AddressSide::Daddr).jump("ports")],
        ),
    );
    chain(
        "postrouting",
        Chain::base(
            ChainKind::Nat,
            HookPoint::Postrouting,
            100,
            vec![
                rule("hairpin").within(Ipv4, &[Saddr, Daddr], "pairs4").snat_to(Ipv4Addr::new(10, 244, 0, 0).into()),
                rule("hosts")
                    .oifgroup(GROUPS)
                    .fib_local(AddressSide::Saddr)
                    .ct_status_dnat()
                    .snat_to("fd00::1".parse().unwrap()),
                rule("out").within(Ipv4, &[Saddr], "nets4").not_within(Ipv4, &[Daddr], "nets4").masquerade(),
                rule("out").within(Ipv6, &[Saddr], "nets6").not_within(Ipv6, &[Daddr], "nets6").masquerade(),
                rule("out").nfproto(Ipv6).l4proto(17).masquerade_to(2000..=65535),
            ],
        ),
    );
    chain(
        "raw",
        Chain::base(
            ChainKind::Filter,
            HookPoint::Prerouting,
            -300,
            vec![
                rule("no loopback").iifgroup(GROUPS).daddr("127.0.0.0/8".parse().unwrap()).drop(),
                rule("").saddr("fd00::/9".parse().unwrap()).counter().returns(),
                rule("").iifname_prefix("ttp").oifname_prefix("ttx").saddr("10.0.0.1/32".parse().unwrap()).accept(),
                rule("").nfproto(Ipv6).goto("end"),
            ],
        ),
    );
    let mut element = |set: &str, key, data| put(Key::NftElement { set: set.into(), key }, Object::NftElement(data));
    for (set, net) in [
        ("nets4", "10.0.0.0/24"),
        ("nets4", "10.0.1.0/24"),
        ("nets4", "192.168.7.7/32"),
        ("nets4", "224.0.0.0/3"),
        ("nets6", "fd00::/64"),
        ("nets6", "ff00::/8"),
    ] {
        element(set, ElementKey::prefix(net.parse().unwrap()), ElementData::default());
    }
    let pod4: IpAddr = Ipv4Addr::new(10, 244, 0, 5).into();
    let pod6: IpAddr = "fd00::5".parse().unwrap();
    let number = |number| Fields::new().number(number).data();
    let class = |from: u16, end: u16| {
        let at = |port| Fields::new().number(7).proto(6).port(port);
        at(from).key_up_to(at(end))
    };
    element("classes", class(0, 80), number(1));
    element("classes", class(80, 81), number(2));
    element("kinds", Fields::new().proto(135).key(), ElementData::default());
    element("links4", Fields::new().ifname("eth0").addr(Ipv4Addr::new(10, 0, 0, 1).into()).key(), number(3));
    element("marks", Fields::new().number(1).number(2).key(), number(0x0100_0007));
    element("marks", ElementKey::catch_all(), number(0));
    element("ranges6", ElementKey::prefix("::/0".parse().unwrap()), number(4));
    element("ranges6", ElementKey::catch_all(), number(5));
    element("pairs4", Fields::new().addr(pod4).addr(pod4).key(), ElementData::default());
    element("ports4", Fields::new().proto(6).port(8080).key(), Fields::new().addr(pod4).port(80).data());
    let node6: IpAddr = "2001:db8::1".parse().unwrap();
    element("ports6", Fields::new().addr(node6).proto(132).port(99).key(), Fields::new().addr(pod6).port(9).data());
    let verdicts = [
        (ElementKey::catch_all(), Verdict::Continue),
        (Fields::new().number(1).key(), Verdict::Return),
        (Fields::new().number(2).key(), Verdict::Goto("end".into())),
        (Fields::new().number(3).key(), Verdict::Jump("end".into())),
        (Fields::new().number(4).key(), Verdict::Drop),
        (Fields::new().number(5).key(), Verdict::Accept),
    ];
    for (key, verdict) in verdicts {
        put(Key::NftElement { set: "verdicts".into(), key }, Object::NftVerdict(verdict));
    }
    put(Key::NftTable, Object::NftTable);
    state
}

/// Rules of what policy is made of.
fn judging() -> Vec<Rule> {
    let mark = |dreg| Expr::Meta { key: MetaKey::Mark, dreg };
    let lookup = |set: &str, sreg| Expr::Lookup { set: set.into(), sreg, dreg: Some(Reg(0)), inverted: false };
    let masked =
        Expr::Bitwise { sreg: Reg(9), dreg: Reg(0), mask: 0xff00_0000_u32.to_ne_bytes().to_vec(), xor: vec![0; 4] };
    let looked_up = rule("through the mark")
        .nfproto(Nfproto::Ipv4)
        .then(mark(Reg(15)))
        .then(Selector::Iifname.load(Nfproto::Ipv4, Reg(0)))
        .then(Selector::Saddr.load(Nfproto::Ipv4, Reg(4)))
        .then(lookup("links4", Reg(0)))
        .then(Expr::SetMark { sreg: Reg(0) })
        .then(mark(Reg(4)))
        .then(mark(Reg(8)))
        .then(Selector::L4proto.load(Nfproto::Ipv4, Reg(5)))
        .then(Expr::Ct { key: CtKey::OriginalProtoDst, dreg: Reg(6) })
        .then(lookup("classes", Reg(4)))
        .then(Expr::SetMark { sreg: Reg(0) })
        .then(mark(Reg(9)))
        .then(lookup("marks", Reg(8)))
        .then(Expr::SetMark { sreg: Reg(15) })
        .then(masked)
        .then(Expr::VerdictMap { map: "verdicts".into(), sreg: Reg(0) })
        .build();
    let ranges = rule("a range")
        .nfproto(Nfproto::Ipv6)
        .then(Selector::Daddr.load(Nfproto::Ipv6, Reg(0)))
        .then(lookup("ranges6", Reg(0)))
        .then(Expr::SetMark { sreg: Reg(0) })
        .build();
    vec![
        rule("").not_iifgroup(GROUPS).ct_mark(0xff00_0000, 0x0300_0000).returns(),
        rule("").l4proto(58).within(Nfproto::Ipv6, &[Selector::IcmpType], "kinds").accept(),
        rule("").ct_state_related().drop(),
        rule("").ct_direction_reply().jump("end"),
        rule("").within(Nfproto::Ipv4, &[Selector::Oifname, Selector::Daddr], "pairs_of_links4").returns(),
        looked_up,
        ranges,
        rule("").limit(100, 50).then(Expr::Log { group: 7474, snaplen: 64 }).build(),
        rule("counted").then(mark(Reg(3))).then(Expr::Count { set: "judged".into(), sreg: Reg(3) }).build(),
        rule("").l4proto(6).then(Expr::Reject { tcp_reset: true }).build(),
        rule("").then(Expr::Reject { tcp_reset: false }).build(),
        rule("stamped").set_ct_mark(0xff00_0000, 0x0300_0000).build(),
    ]
}

/// What `nft` of Debian 12 shows of it.
const LISTING: &str = include_str!("nft/listing.txt");

fn make(netns: &Netns, from: &State, to: &State) -> Vec<Failure> {
    let change = diff(from, to, |_| true);
    netns.change(move || Nft::open().unwrap().apply(&change.steps))
}

/// Asks until there is an answer.
fn read(netns: &Netns) -> State {
    netns.run(|| {
        let mut nft = Nft::open().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match nft.read() {
                Err(KernelError::Interrupted(_)) if Instant::now() < deadline => {}
                answer => return answer.unwrap(),
            }
        }
    })
}

/// Same keys, same objects.
fn assert_same(read: &State, wanted: &State) {
    let change = diff(read, wanted, |_| true);
    assert!(change.is_empty(), "read is not wanted: {:#?}", change.steps);
}

fn key4(octets: [u8; 4]) -> ElementKey {
    Fields::new().addr(IpAddr::from(octets)).key()
}

fn chain(name: &str) -> Key {
    Key::NftChain { chain: name.into() }
}

fn table_with(entries: impl IntoIterator<Item = (Key, Object)>) -> State {
    let mut state = State::new();
    state.insert(Key::NftTable, Object::NftTable, Owner::Node);
    for (key, object) in entries {
        state.insert(key, object, Owner::Node);
    }
    state
}

#[test]
fn listed_by_nft_and_read_back() {
    let netns = Netns::new();
    assert_eq!(make(&netns, &State::new(), &sample()), []);
    assert_same(&read(&netns), &sample());
    assert_eq!(netns.listing(), LISTING);
    assert_eq!(netns.sh("nft -s list ruleset"), netns.sh("nft -s list table inet tartan"));
}

#[test]
fn deleted_whole_and_deleting_the_absent_is_success() {
    let netns = Netns::new();
    assert_eq!(make(&netns, &State::new(), &sample()), []);
    assert_eq!(make(&netns, &sample(), &State::new()), []);
    assert_eq!(netns.sh("nft list ruleset"), "");
    assert_eq!(make(&netns, &sample(), &State::new()), []);
    // The table stays and all in it goes; then all of it is there no more when it is to go.
    assert_eq!(make(&netns, &State::new(), &sample()), []);
    assert_eq!(make(&netns, &sample(), &table_with([])), []);
    assert_same(&read(&netns), &table_with([]));
    assert_eq!(make(&netns, &sample(), &table_with([])), []);
}

#[test]
fn creating_what_is_there_already_overwrites_it() {
    let netns = Netns::new();
    for _ in 0..2 {
        assert_eq!(make(&netns, &State::new(), &sample()), []);
        assert_same(&read(&netns), &sample());
    }
}

#[test]
fn what_others_do_to_our_table_is_seen_and_repaired() {
    let check = |script: &str| {
        let netns = Netns::new();
        // Nobody's, so that others can change it.
        netns.sh("nft add table inet tartan");
        assert_eq!(make(&netns, &State::new(), &sample()), []);
        netns.sh(script);
        let found = read(&netns);
        assert!(!diff(&found, &sample(), |_| true).is_empty(), "not seen: {script}");
        assert_eq!(make(&netns, &found, &sample()), [], "{script}");
        assert_same(&read(&netns), &sample());
        assert_eq!(netns.listing(), LISTING, "{script}");
    };
    check("nft add rule inet tartan end drop");
    check("nft insert rule inet tartan raw counter accept");
    check("nft flush chain inet tartan raw");
    check("nft 'add chain inet tartan raw { type filter hook prerouting priority raw; policy drop; }'");
    check("nft 'add table inet tartan { flags dormant; }'");
    check("nft delete element inet tartan nets4 '{ 10.0.1.0/24 }'");
    check("nft add element inet tartan pairs4 '{ 10.0.0.9 . 10.0.0.9 }'");
    check("nft 'add set inet tartan more { type mark; }; add element inet tartan more { 1, 2 }'");
    check("nft 'add map inet tartan vm { type mark : verdict; }; add element inet tartan vm { 1 : drop }'");
    check("nft 'add chain inet tartan more { type filter hook ingress device lo priority 0; }'");
    check("nft 'add rule inet tartan end tcp dport { 1, 2, 3 } drop'");
    check("nft flush map inet tartan ports4");
    check("nft delete table inet tartan");
    check("nft flush ruleset");
}

#[test]
fn a_bad_object_does_not_stop_the_others() {
    let netns = Netns::new();
    let bad_jump = Chain::regular(vec![rule("").jump("nowhere")]);
    let too_long = ElementKey { bytes: [1; 9].into(), end: None };
    let overlapping = ElementKey::prefix("10.0.0.0/8".parse().unwrap());
    let mut wanted = sample();
    let bad = [
        (chain("aaa"), Object::NftChain(bad_jump.clone().into())),
        (chain("zzz"), Object::NftChain(bad_jump.into())),
        (Key::NftElement { set: "pairs4".into(), key: too_long }, Object::NftElement(ElementData::default())),
        (Key::NftElement { set: "nets4".into(), key: overlapping }, Object::NftElement(ElementData::default())),
        (Key::NftElement { set: "nowhere".into(), key: key4([1; 4]) }, Object::NftElement(ElementData::default())),
    ];
    for (key, object) in &bad {
        wanted.insert(key.clone(), object.clone(), Owner::Pod("p1".into()));
    }
    let failures = make(&netns, &State::new(), &wanted);
    // Of two overlapping intervals either may be the one refused.
    let innocent = |failure: &&Failure| failure.owner == Owner::Node;
    assert!(failures.iter().filter(innocent).count() <= 2, "{failures:#?}");
    assert!(failures.iter().any(|failure| failure.key == bad[0].0), "{failures:#?}");
    assert!(failures.iter().any(|failure| failure.key == bad[1].0), "{failures:#?}");
    assert!(failures.iter().any(|failure| failure.key == bad[2].0), "{failures:#?}");
    assert!(failures.iter().any(|failure| failure.key == bad[4].0), "{failures:#?}");
    let found = read(&netns);
    let missing: Vec<_> = wanted.iter().filter(|(key, entry)| !found.holds(key, &entry.object)).collect();
    assert_eq!(missing.len(), failures.len(), "all but the refused are there: {missing:#?} {failures:#?}");
    // The same again, now that nothing bad is wanted.
    assert_eq!(make(&netns, &found, &sample()), []);
    assert_same(&read(&netns), &sample());
}

#[test]
fn a_set_can_be_redefined_under_its_name() {
    let netns = Netns::new();
    let using = |set: Set, key: ElementKey| {
        let other = Chain::regular(vec![rule("uses it").within(Nfproto::Ipv4, &[Selector::Saddr], "s").accept()]);
        table_with([
            (Key::NftSet { set: "s".into() }, Object::NftSet(set.into())),
            (chain("c"), Object::NftChain(other.into())),
            (Key::NftElement { set: "s".into(), key }, Object::NftElement(ElementData::default())),
        ])
    };
    let exact = using(Set::exact(&[Type::Ipv4Addr]), key4([10, 0, 0, 1]));
    let intervals = using(Set::intervals(Type::Ipv4Addr), ElementKey::prefix("10.0.0.1/32".parse().unwrap()));
    assert_eq!(make(&netns, &State::new(), &exact), []);
    for (from, to) in [(&exact, &intervals), (&intervals, &exact)] {
        let change = diff(from, to, |_| true);
        let mut twin = from.clone();
        change.apply_to(&mut twin);
        assert_same(&twin, to);
        assert_eq!(make(&netns, &read(&netns), to), []);
        assert_same(&read(&netns), to);
    }
}

/// Linux has it since 6.9.
fn tables_can_be_owned() -> bool {
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(9))
}

fn open(netns: &Netns) -> Nft {
    netns.run(|| Nft::open().unwrap())
}

/// Makes the table as wanted, whatever it is.
fn mend(nft: &mut Nft, wanted: &State) {
    let change = diff(&nft.adopt().unwrap(), wanted, |_| true);
    assert_eq!(nft.apply(&change.steps), []);
    assert_same(&nft.read().unwrap(), wanted);
}

#[test]
fn while_its_socket_is_open_nobody_else_changes_the_table_and_the_next_socket_adopts_it() {
    let (netns, wanted) = (Netns::new(), sample());
    let refuses = |script: &str| matches!(netns.try_sh(script), (false, why) if why.contains("not permitted"));
    let mut first = open(&netns);
    mend(&mut first, &wanted);
    assert_eq!(refuses("nft add chain inet tartan theirs"), tables_can_be_owned());
    if !tables_can_be_owned() {
        return;
    }
    netns.sh("nft flush ruleset");
    assert_same(&first.read().unwrap(), &wanted);
    let mut next = open(&netns);
    next.adopt().unwrap();
    assert!(refuses("nft delete table inet tartan"), "it is still the first one's");
    let chain = (Key::NftChain { chain: "second".into() }, Object::NftChain(Chain::regular(vec![]).into()));
    let second = Step::create(chain.0, chain.1, Owner::Node);
    let failures = next.apply(&[second]);
    assert!(failures[0].error.to_string().contains("second agent"), "{failures:?}");
    drop(first);
    // A program that another test has just started has it, too, until it runs.
    let deadline = Instant::now() + Duration::from_secs(10);
    while refuses("nft add chain inet tartan theirs") {
        assert!(Instant::now() < deadline, "it is still the first one's");
    }
    mend(&mut next, &wanted);
    assert!(refuses("nft delete table inet tartan"), "it is the next one's");
}

#[test]
fn a_table_of_nobody_stays_so_until_another_is_made() {
    let (netns, wanted) = (Netns::new(), sample());
    netns.sh("nft add table inet tartan");
    let mut nft = open(&netns);
    mend(&mut nft, &wanted);
    netns.sh("nft add table inet tartan '{ flags dormant; }'");
    mend(&mut nft, &wanted);
    netns.sh("nft delete table inet tartan");
    mend(&mut nft, &wanted);
    let (deleted, _) = netns.try_sh("nft delete table inet tartan");
    assert_eq!(deleted, !tables_can_be_owned());
}

#[test]
fn twenty_thousand_elements_in_one_transaction() {
    let netns = Netns::new();
    let set: SetName = "many".into();
    let elements = (0..20_000_u32).map(|n| {
        let key = Fields::new().addr(Ipv4Addr::from(0x0a00_0000 + n).into()).key();
        (Key::NftElement { set, key }, Object::NftElement(ElementData::default()))
    });
    let object = Object::NftSet(Set::exact(&[Type::Ipv4Addr]).into());
    let wanted = table_with(elements.chain([(Key::NftSet { set }, object)]));
    let generation = netns.run(|| Nft::open().unwrap().generation().unwrap());
    assert_eq!(make(&netns, &State::new(), &wanted), []);
    assert_eq!(netns.run(|| Nft::open().unwrap().generation().unwrap()), generation + 1);
    assert_same(&read(&netns), &wanted);
    // Half of them go, and one of those has gone before.
    netns.sh("nft delete element inet tartan many '{ 10.0.0.1 }'");
    let mut fewer = wanted.clone();
    for n in (1..20_000_u32).step_by(2) {
        let key = Fields::new().addr(Ipv4Addr::from(0x0a00_0000 + n).into()).key();
        fewer.remove(&Key::NftElement { set, key });
    }
    assert_eq!(make(&netns, &wanted, &fewer), []);
    assert_same(&read(&netns), &fewer);
}

#[test]
fn a_read_never_mixes_two_generations() {
    let netns = Netns::new();
    let numbered = |n: u32| {
        let elements = (0..200).map(|i| {
            let key = Fields::new().addr(Ipv4Addr::from(n << 16 | i).into()).key();
            (Key::NftElement { set: "s".into(), key }, Object::NftElement(ElementData::default()))
        });
        let set = (Key::NftSet { set: "s".into() }, Object::NftSet(Set::exact(&[Type::Ipv4Addr]).into()));
        table_with(elements.chain([set]))
    };
    let states: Vec<State> = (1..=40).map(numbered).collect();
    assert_eq!(make(&netns, &State::new(), &states[0]), []);
    netns.run(move || {
        let (mut writer, mut reader) = (Nft::open().unwrap(), Nft::open().unwrap());
        let writes = states.clone();
        let thread = std::thread::spawn(move || {
            for pair in writes.windows(2) {
                assert_eq!(writer.apply(&diff(&pair[0], &pair[1], |_| true).steps), []);
            }
        });
        while !thread.is_finished() {
            match reader.read() {
                Ok(state) => assert!(states.iter().any(|known| diff(known, &state, |_| true).is_empty())),
                Err(error) => assert!(matches!(error, KernelError::Interrupted(_)), "{error}"),
            }
        }
        thread.join().unwrap();
    });
}

/// A state made from bits: which sets there are, what is in them, and which chains use them.
fn random_state(bits: u64) -> State {
    let mut left = bits;
    let mut yes = move || {
        left = left.rotate_right(1);
        left >> 63 == 1
    };
    if bits.is_multiple_of(13) {
        return State::new();
    }
    let mut state = table_with([]);
    let mut put = |key, object| state.insert(key, object, Owner::Node);
    for (name, intervals) in [("intervals", true), ("either", yes()), ("exact", false)] {
        let mut rules = vec![rule("first").saddr("10.9.0.0/16".parse().unwrap()).drop()];
        if yes() {
            let set = if intervals { Set::intervals(Type::Ipv4Addr) } else { Set::exact(&[Type::Ipv4Addr]) };
            put(Key::NftSet { set: name.into() }, Object::NftSet(set.into()));
            for third in 0..4 {
                let prefix = if yes() { 24 } else { 25 };
                let net = format!("10.0.{third}.0/{prefix}").parse().unwrap();
                let key = if intervals { ElementKey::prefix(net) } else { key4([10, 0, third, prefix]) };
                if yes() {
                    put(Key::NftElement { set: name.into(), key }, Object::NftElement(ElementData::default()));
                }
            }
            rules.push(rule("second").within(Nfproto::Ipv4, &[Selector::Daddr], name).accept());
        }
        if yes() {
            let map = format!("{name}_verdicts");
            put(Key::NftSet { set: map.as_str().into() }, Object::NftSet(Set::verdict_map(&[Type::Mark]).into()));
            for code in 0..3 {
                let key = if code == 0 { ElementKey::catch_all() } else { Fields::new().number(code).key() };
                let verdict = if yes() { Verdict::Goto("ends".into()) } else { Verdict::Continue };
                if yes() {
                    put(Key::NftElement { set: map.as_str().into(), key }, Object::NftVerdict(verdict));
                }
            }
            put(chain("ends"), Object::NftChain(Chain::regular(vec![rule("").drop()]).into()));
            let asked = rule("third").then(Expr::Meta { key: MetaKey::Mark, dreg: Reg(0) });
            rules.push(asked.then(Expr::VerdictMap { map: map.into(), sreg: Reg(0) }).build());
        }
        if yes() {
            rules.reverse();
        }
        let priority = if yes() { 10 } else { 20 };
        let base = Chain::base(ChainKind::Filter, HookPoint::Forward, priority, rules.clone());
        put(chain(name), Object::NftChain(if yes() { base } else { Chain::regular(rules) }.into()));
    }
    state
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 48, failure_persistence: None, ..Default::default() })]

    /// The twin proof: what the pure twin says, the kernel holds, after one transaction.
    #[test]
    fn one_transaction_makes_any_state_of_any_other(a: u64, b: u64, c: u64) {
        let netns = Netns::new();
        let mut before = State::new();
        for wanted in [a, b, c].map(random_state) {
            let change = diff(&before, &wanted, |_| true);
            let mut twin = before.clone();
            change.apply_to(&mut twin);
            assert_same(&twin, &wanted);
            let ops = change.steps.clone();
            proptest::prop_assert_eq!(netns.change(move || Nft::open().unwrap().apply(&ops)), []);
            before = read(&netns);
            assert_same(&before, &wanted);
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 48, failure_persistence: None, ..Default::default() })]

    /// Intervals that touch, split, grow and shrink: the kernel checks each against those of before and of after.
    #[test]
    fn intervals_change_in_one_transaction(
        steps in proptest::collection::vec(proptest::collection::vec((0..16_u32, 26..=32_u8), 0..24), 2..6)
    ) {
        let netns = Netns::new();
        let mut before = State::new();
        for ranges in steps {
            let ranges = ranges.into_iter().map(|(at, len)| Ipv4Net::new(Ipv4Addr::from(0xc000_0200 + at * 16), len).unwrap());
            let elements = Ipv4Net::aggregate(&ranges.collect()).into_iter().map(|range| {
                let key = Key::NftElement { set: "s".into(), key: ElementKey::prefix(range.into()) };
                (key, Object::NftElement(ElementData::default()))
            });
            let set = (Key::NftSet { set: "s".into() }, Object::NftSet(Set::intervals(Type::Ipv4Addr).into()));
            let wanted = table_with(elements.chain([set]));
            proptest::prop_assert_eq!(make(&netns, &before, &wanted), []);
            before = read(&netns);
            assert_same(&before, &wanted);
        }
    }
}

/// Which number it is nobody needs to know: only that it is another one, and that there is one.
#[test]
fn the_state_of_policy_has_a_number_that_changes_and_comes_back() {
    let netns = Netns::new();
    let numbers = || netns.sh("nft -s list map inet tartan policy_epoch | grep elements");
    let (key, object) = epoch::element();
    let set = Object::NftSet(Set::map(&[Type::Mark], &[Type::Mark]).into());
    let wanted = table_with([(Key::NftSet { set: NFT_EPOCH_MAP.into() }, set), (key.clone(), object.clone())]);
    assert_eq!(make(&netns, &State::new(), &wanted), []);
    assert_same(&read(&netns), &wanted);
    let first = numbers();
    let again = vec![Step::replace(key, object.clone(), object, Owner::Node)];
    assert_eq!(netns.change(move || Nft::open().unwrap().apply(&again)), []);
    assert_same(&read(&netns), &wanted);
    assert_ne!(numbers(), first);
    for harm in [
        "flush map inet tartan policy_epoch",
        "add element inet tartan policy_epoch { 0x7 : 0x8 }",
        "flush map inet tartan policy_epoch; add element inet tartan policy_epoch { 0x0 : 0x0 }",
        "flush map inet tartan policy_epoch; add element inet tartan policy_epoch { 0x0 : 0x5, 0x5 : 0x6 }",
        "flush map inet tartan policy_epoch; add element inet tartan policy_epoch { 0x5 : 0x0, 0x6 : 0x5 }",
    ] {
        netns.sh(&format!("nft '{harm}'"));
        let found = read(&netns);
        assert_ne!(found, wanted, "{harm}");
        assert_eq!(make(&netns, &found, &wanted), [], "{harm}");
        assert_same(&read(&netns), &wanted);
    }
}
