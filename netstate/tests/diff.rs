//! Laws of the difference, on random pairs of states.

#![allow(clippy::unwrap_used, reason = "a test")]

mod states;

use std::collections::BTreeSet;

use proptest::prelude::*;
use states::{Choice, mac, name, pretended_pods, state, with_engines};
use tartan_netstate::{
    Change, Entry, Key, Link, LinkKind, Netns, Object, Op, Owner, PublicKey, Route, State, VxlanParams, WgDevice, diff,
    diff::hanging_on,
};

fn pair(a: &Choice, b: &Choice) -> (State, State) {
    let pods = pretended_pods();
    (with_engines(&pods, a), with_engines(&pods, b))
}

/// Object by object, whoever the owners are.
fn same(a: &State, b: &State) -> bool {
    a.len() == b.len() && a.holds_all(b)
}

fn one(change: &Change, at: usize) -> Change {
    Change { ops: vec![change.ops[at].clone()] }
}

/// The link an object needs, if it is one of ours.
fn needs(key: &Key, object: &Object) -> Option<Key> {
    let dev = if let Object::Route(route) = object { route.dev.as_ref() } else { None };
    let link = key.link().or(dev).filter(|link| link.as_str() != "lo")?;
    Some(Key::Link { ns: key.netns().clone(), link: link.clone() })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn applied_it_gives_what_is_wanted(a: Choice, b: Choice) {
        let (mut a, b) = pair(&a, &b);
        diff(&a, &b, |_| true).apply_to(&mut a);
        prop_assert!(same(&a, &b));
        prop_assert!(diff(&a, &b, |_| true).is_empty());
    }

    #[test]
    fn between_equal_states_there_is_nothing(a: Choice) {
        let (a, b) = pair(&a, &a);
        prop_assert!(diff(&a, &b, |_| true).is_empty());
    }

    #[test]
    fn what_may_not_be_deleted_stays(a: Choice, b: Choice) {
        let (a, b) = pair(&a, &b);
        let change = diff(&a, &b, |_| false);
        let mut after = a.clone();
        change.apply_to(&mut after);
        prop_assert!(after.holds_all(&b));
        let remade: BTreeSet<&Key> = change.ops.iter().filter(|(op, _)| matches!(op, Op::Delete(..))).map(|(op, _)| op.key()).collect();
        prop_assert!(remade.iter().all(|key| b.get(key).is_some()), "only links that are made again: {:?}", remade);
    }

    #[test]
    fn nothing_is_made_before_its_link(a: Choice, b: Choice) {
        let (mut now, b) = pair(&a, &b);
        let change = diff(&now, &b, |_| true);
        for at in 0..change.ops.len() {
            if let Op::Create(key, object) | Op::Replace { key, new: object, .. } = &change.ops[at].0
                && let Some(link) = needs(key, object)
            {
                let comes_with_its_pair = matches!(object, Object::Link(link) if link.kind == LinkKind::VethPeer);
                prop_assert!(comes_with_its_pair || now.get(&link).is_some(), "{key} before {link}");
            }
            one(&change, at).apply_to(&mut now);
        }
    }

    #[test]
    fn a_route_that_stays_is_never_away_unless_its_link_is_made_again(a: Choice, b: Choice) {
        let (mut now, b) = pair(&a, &b);
        let change = diff(&now, &b, |_| true);
        let both: Vec<Key> = now.iter().map(|(key, _)| key.clone()).filter(|key| matches!(key, Key::Route { .. }) && b.get(key).is_some()).collect();
        let deleted = change.ops.iter().filter_map(|(op, _)| if let Op::Delete(key, _) = op { key.as_link() } else { None }).collect();
        let excused = hanging_on(&now, &deleted);
        for at in 0..change.ops.len() {
            one(&change, at).apply_to(&mut now);
            for key in both.iter().filter(|key| !excused.contains(key)) {
                prop_assert!(now.get(key).is_some(), "{key} after {:?}", change.ops[at].0);
            }
        }
    }

    /// The kernel would take it, and say nothing of whom it took it from.
    #[test]
    fn no_wireguard_peer_gets_a_range_that_another_one_has(a: Choice, b: Choice, may_delete: bool) {
        let (mut now, b) = pair(&a, &b);
        let change = diff(&now, &b, |_| may_delete);
        for at in 0..change.ops.len() {
            if let Op::Create(key, Object::WgPeer(peer)) | Op::Replace { key, new: Object::WgPeer(peer), .. } = &change.ops[at].0 {
                for (other, entry) in now.iter().filter(|(other, _)| *other != key && other.link() == key.link()) {
                    let Object::WgPeer(has) = &entry.object else { continue };
                    prop_assert!(has.allowed.iter().all(|range| !peer.allowed.contains(range)), "{key}: {peer:?}, {other}: {has:?}");
                }
            }
            one(&change, at).apply_to(&mut now);
        }
    }

    #[test]
    fn a_gateway_can_be_reached_before_it_is_named(a: Choice, b: Choice) {
        let (mut now, b) = pair(&a, &b);
        let change = diff(&now, &b, |_| true);
        for at in 0..change.ops.len() {
            if let Op::Create(key, Object::Route(route)) = &change.ops[at].0
                && let Some(via) = route.via
                && !route.onlink
            {
                let leads_there = |(other, entry): (&Key, &Entry)| matches!(
                    (other, &entry.object),
                    (Key::Route { ns, dst, .. }, Object::Route(route)) if route.via.is_none() && ns == key.netns() && dst.contains(&via)
                );
                prop_assert!(now.iter().any(leads_there), "{key} by way of {via}");
            }
            one(&change, at).apply_to(&mut now);
        }
    }
}

fn vxlan(vni: u32, port: u16, gbp: bool) -> Object {
    let params = VxlanParams { vni, port, local: "192.0.2.1".parse().unwrap(), learning: false, gbp };
    Object::Link(Link { kind: LinkKind::Vxlan(params), mac: Some(mac(1)), mtu: 1450, group: 0, up: true }.into())
}

fn device(link: &str, object: Object) -> State {
    let key = Key::Link { ns: Netns::Host, link: name(link) };
    [(key, Entry { object, owner: Owner::Node })].into_iter().collect()
}

#[test]
fn the_next_pod_in_a_namespace_comes_after_the_last_one_went() {
    let pods = pretended_pods();
    let before = state(&pods, &choice(0));
    let wanted = state(&pods, &choice(1));
    let steps = steps(&before, &wanted);
    assert_eq!(&steps[..2], ["-link ttp00000000000 in host", "+link ttp00000000010 in host"]);
    assert!(steps.contains(&"+link eth0 in /run/netns/1 (nsfs 4:1)".into()), "all of it is made again: {steps:#?}");
}

#[test]
fn a_links_new_mtu_has_its_ipv6_routes_written_again() {
    let with_mtu = |mtu: u32| {
        let mut state = device("ttx0", vxlan(1, 8472, false));
        let key = Key::Link { ns: Netns::Host, link: name("ttx0") };
        if let Some(Entry { object: Object::Link(link), .. }) = state.get(&key).cloned() {
            state.insert(key, Object::Link(Link { mtu, ..(*link).clone() }.into()), Owner::Node);
        }
        for dst in ["10.0.0.0/24", "fd00::/64", "fd00:1::/64"] {
            let route = Route { mtu: (dst != "fd00::/64").then_some(1400), ..Route::on_link(name("ttx0")) };
            let key = Key::Route { ns: Netns::Host, table: 254, dst: dst.parse().unwrap(), metric: 1024 };
            state.insert(key, Object::Route(route.into()), Owner::Node);
        }
        state
    };
    let steps = steps(&with_mtu(1400), &with_mtu(1450));
    assert_eq!(steps, ["~link ttx0 in host", "~route fd00:1::/64 table 254 metric 1024 in host"]);
}

/// One pod, by one of two attachments.
fn choice(look: u8) -> Choice {
    let mut choice = [0; 32];
    choice[..4].copy_from_slice(&[1, look, 1, 1]);
    choice
}

/// The steps in words: `+` makes, `~` changes, `-` deletes.
fn steps(before: &State, wanted: &State) -> Vec<String> {
    let step = |(op, _): &(Op, Owner)| match op {
        Op::Create(key, _) => format!("+{key}"),
        Op::Replace { key, .. } => format!("~{key}"),
        Op::Delete(key, _) => format!("-{key}"),
    };
    diff(before, wanted, |_| true).ops.iter().map(step).collect()
}

#[test]
fn a_device_goes_first_only_if_it_stands_in_the_way() {
    let check = |before: (&str, Object), wanted: (&str, Object), is: &[&str]| {
        assert_eq!(steps(&device(before.0, before.1), &device(wanted.0, wanted.1)), is);
    };
    let old = || ("ttx0", vxlan(1, 8472, false));
    check(old(), ("ttx1", vxlan(2, 8472, false)), &["+link ttx1 in host", "-link ttx0 in host"]);
    check(old(), ("ttx1", vxlan(1, 4789, false)), &["+link ttx1 in host", "-link ttx0 in host"]);
    check(old(), ("ttx1", vxlan(1, 8472, false)), &["-link ttx0 in host", "+link ttx1 in host"]);
    check(old(), ("ttx1", vxlan(2, 8472, true)), &["-link ttx0 in host", "+link ttx1 in host"]);
    check(old(), ("ttx0", vxlan(2, 8472, false)), &["-link ttx0 in host", "+link ttx0 in host"]);
    check(old(), old(), &[]);
}

#[test]
fn a_wireguard_device_goes_first_only_if_its_port_is_wanted_by_another() {
    let wireguard = |link: &str, listen_port| {
        let kind = LinkKind::Wireguard { label: link.into() };
        let mut state = device(link, Object::Link(Link { kind, mac: None, mtu: 1420, group: 0, up: true }.into()));
        let object = Object::WgDevice(WgDevice { listen_port, public_key: PublicKey([1; 32]) });
        state.insert(Key::WgDevice { link: name(link) }, object, Owner::Node);
        state
    };
    let (came, went) =
        (["+link ttx1 in host", "+key and port of ttx1"], ["-key and port of ttx0", "-link ttx0 in host"]);
    let check = |port: u16, is: [&str; 4]| {
        assert_eq!(steps(&wireguard("ttx0", 51820), &wireguard("ttx1", port)), is);
    };
    check(51821, [came[0], came[1], went[0], went[1]]);
    check(51820, [went[1], came[0], came[1], went[0]]);
}

#[test]
fn only_a_local_address_of_the_same_family_moves_in_place() {
    let local = |text: &str| {
        let params = VxlanParams { vni: 1, port: 8472, local: text.parse().unwrap(), learning: false, gbp: false };
        Object::Link(Link { kind: LinkKind::Vxlan(params), mac: Some(mac(1)), mtu: 1450, group: 0, up: true }.into())
    };
    let check = |before: &str, wanted: &str, is: &[&str]| {
        assert_eq!(steps(&device("ttx0", local(before)), &device("ttx0", local(wanted))), is);
    };
    check("192.0.2.1", "192.0.2.2", &["~link ttx0 in host"]);
    check("192.0.2.1", "2001:db8::1", &["-link ttx0 in host", "+link ttx0 in host"]);
}
