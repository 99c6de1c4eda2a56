//! The twin proof: on random pairs of states, `apply(diff(a, b))` in a real namespace reads back as `b`, in one pass.
//!
//! `Change::apply_to` is the slow, obvious twin of the kernel; netstate proves that it gives `b`, this proves that the
//! kernel does.

#![allow(clippy::unwrap_used, reason = "a test")]

mod netns;
mod place;
#[path = "../../netstate/tests/states/mod.rs"]
mod states;

use std::collections::BTreeSet;
use std::path::Path;

use netns::Netns;
use place::Place;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use states::{Choice, state, with_ipsec, with_tunnels, with_wireguard};
use tartan_kernel::keys::{Keys, PrivateKey};
use tartan_kernel::linux::Linux;
use tartan_kernel::{Kernel, Scope};
use tartan_netstate::{Key, LinkKind, Object, Owner, PodNetns, PublicKey, State, diff};

/// Everything of ours, as far as `wanted` or `before` may have put it there.
fn read(kernel: &mut Linux, before: &State, wanted: &State) -> State {
    let sysctl = |key: &Key| matches!(key, Key::Sysctl { .. } | Key::UplinkSysctl { .. } | Key::LinkSysctl { .. });
    let sysctls = wanted.iter().map(|(key, _)| key).filter(|key| sysctl(key)).cloned().collect();
    let mut pods = std::collections::BTreeMap::<_, BTreeSet<_>>::new();
    for (_, entry) in before.iter().chain(wanted.iter()) {
        if let Object::Link(link) = &entry.object
            && let LinkKind::Veth { peer: tartan_netstate::Netns::Pod(ns), peer_name } = &link.kind
        {
            pods.entry(ns.clone()).or_default().insert(peer_name.clone());
        }
    }
    let mut scopes: Vec<Scope> = Scope::of_node().filter(|scope| *scope != Scope::Foreign).collect();
    scopes.push(Scope::Sysctls(sysctls));
    scopes.extend(pods.into_iter().map(|(ns, ends)| Scope::Pod { ns: (*ns).clone(), ends }));
    scopes.iter().flat_map(|scope| entries(&kernel.read(scope).unwrap())).collect()
}

fn entries(state: &State) -> Vec<(Key, tartan_netstate::Entry)> {
    state.iter().map(|(key, entry)| (key.clone(), entry.clone())).collect()
}

/// Without owners, which the kernel does not keep.
fn bare(state: &State) -> State {
    state
        .iter()
        .map(|(key, entry)| (key.clone(), tartan_netstate::Entry { object: entry.object.clone(), owner: Owner::Read }))
        .collect()
}

/// One line a difference, for a failure that can be read.
fn differences(is: &State, should: &State) -> Vec<String> {
    let object = |state: &State, key: &Key| state.get(key).map(|entry| entry.object.clone());
    should
        .differing_keys(is)
        .map(|key| format!("{key}: should be {:?}, is {:?}", object(should, key), object(is, key)))
        .collect()
}

fn becomes(kernel: &mut Linux, before: &State, wanted: &State) -> Result<(), TestCaseError> {
    let change = diff(before, wanted, |_| true);
    let failures = kernel.apply(&change);
    prop_assert!(failures.is_empty(), "{failures:#?}");
    let found = bare(&read(kernel, before, wanted));
    let wrong = differences(&found, &bare(wanted));
    let steps: Vec<String> = change.steps.iter().map(|step| format!("{:?}", step.op())).collect();
    prop_assert!(wrong.is_empty(), "{wrong:#?} after {steps:#?}");
    Ok(())
}

#[test]
fn one_pass_makes_the_kernel_equal_to_any_wanted_state() {
    check(state);
}

#[test]
#[ignore = "wants the kernel modules ipip, sit and ip6_tunnel: `cargo xtask vm`"]
fn vm_one_pass_makes_the_kernel_equal_to_any_wanted_state_with_tunnels() {
    check(with_tunnels);
}

#[test]
#[ignore = "wants the kernel module wireguard: `cargo xtask vm`"]
fn vm_one_pass_makes_the_kernel_equal_to_any_wanted_state_with_wireguard() {
    check_with_keys("wireguard", with_wireguard);
}

#[test]
#[ignore = "wants the kernel modules xfrm_interface, esp4 and esp6: `cargo xtask vm`"]
fn vm_one_pass_makes_the_kernel_equal_to_any_wanted_state_with_ipsec() {
    check_with_keys("ipsec", with_ipsec);
}

/// With two key pairs that are there.
fn check_with_keys(test: &str, state: fn(&[PodNetns], &Choice, &[PublicKey]) -> State) {
    let dir = std::env::temp_dir().join(format!("tartan-twin-{test}-{}", std::process::id()));
    let keys = Keys::of(&dir);
    for name in ["a", "b"] {
        keys.make(name).unwrap();
    }
    let public: Vec<PublicKey> = keys.all().unwrap().values().map(PrivateKey::public).collect();
    let with_pairs = move |pods: &[PodNetns], choice: &Choice| {
        let mut state = state(pods, choice, &public);
        for name in ["a", "b"] {
            state.insert(Key::KeyPair { name: name.into() }, Object::KeyPair, Owner::Node);
        }
        state
    };
    check_with(&dir, with_pairs);
    std::fs::remove_dir_all(dir).unwrap();
}

fn check(state: fn(&[PodNetns], &Choice) -> State) {
    check_with(Path::new(""), state);
}

fn check_with(keys: &Path, state: impl Fn(&[PodNetns], &Choice) -> State + Send + 'static) {
    let keys = keys.to_owned();
    let place = Place::new();
    let node = Netns::new();
    node.run(move || {
        let mut kernel = Linux::open().unwrap().with_keys_in(&keys);
        let before = std::cell::RefCell::new(State::new());
        let kernel = std::cell::RefCell::new(&mut kernel);
        let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
        let outcome = runner.run(&any::<Choice>(), |choice| {
            let wanted = state(&place.pods, &choice);
            let mut kernel = kernel.borrow_mut();
            // A case that failed leaves anything behind: begin with what is there.
            let found = read(&mut kernel, &before.borrow(), &wanted);
            let result = becomes(&mut kernel, &found, &wanted);
            *before.borrow_mut() = wanted;
            result
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    });
}
