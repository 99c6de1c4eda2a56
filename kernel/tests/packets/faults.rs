//! Faults, made on purpose, that the packets must show: each takes what of policy the node was told to want last and what policy
//! wants, and gives what the node is told to want instead, one after the other.

use tartan_netstate::nft::{Chain, Rule};
use tartan_netstate::{Entry, Key, Object, State};

pub(crate) type Fault = fn(before: &State, wanted: &State) -> Vec<State>;

pub(crate) const FAULTS: [(&str, Fault); 8] = [
    ("a node says that it is done before it has begun", |before, _| vec![before.clone()]),
    ("for a moment nothing is enforced", |_, wanted| vec![without_rules(wanted, "policy_forward"), wanted.clone()]),
    ("one row is missing", |_, wanted| {
        let mut state = wanted.clone();
        rows(wanted).nth(1).into_iter().for_each(|(key, _)| drop(state.remove(key)));
        vec![state]
    }),
    ("two rows stand in each other's place", |_, wanted| {
        let mut state = wanted.clone();
        let mut pairs = rows(wanted).zip(rows(wanted).skip(1));
        if let Some(((one, first), (other, second))) = pairs.find(|((_, one), (_, other))| one.object != other.object) {
            state.insert(one.clone(), second.object.clone(), second.owner.clone());
            state.insert(other.clone(), first.object.clone(), first.owner.clone());
        }
        vec![state]
    }),
    ("connections that were judged are not judged again", |before, wanted| {
        let mut state = wanted.clone();
        // Without a policy none was judged.
        let judged = before.get(&Key::NftChain { chain: "policy_forward".into() }).is_some();
        for (key, entry) in before.iter().filter(|(key, _)| judged && matches!(key, Key::NftChain { .. })) {
            state.insert(key.clone(), entry.object.clone(), entry.owner.clone());
        }
        vec![state]
    }),
    ("what one end has judged, both have", |_, wanted| {
        let first = rules(wanted, "policy_judged_here");
        vec![with_rules(wanted, "policy_forward", |then| [first, then].concat())]
    }),
    ("answers are not judged", |_, wanted| vec![without_rules(wanted, "policy_through_back")]),
    ("pods send under any address", |_, wanted| vec![without_rules(wanted, "policy_source")]),
];

fn rows(state: &State) -> impl Iterator<Item = (&Key, &Entry)> {
    state.iter().filter(|(key, _)| match key {
        Key::NftElement { set, .. } => set.ends_with("_any") || set.ends_with("_words"),
        _ => false,
    })
}

fn without_rules(state: &State, name: &str) -> State {
    with_rules(state, name, |_| Vec::new())
}

fn with_rules(state: &State, name: &str, other: impl FnOnce(Vec<Rule>) -> Vec<Rule>) -> State {
    let mut state = state.clone();
    let key = Key::NftChain { chain: name.into() };
    let entry = state.get(&key).expect("the chain is there").clone();
    let Object::NftChain(chain) = &entry.object else { panic!("{name} is a chain") };
    let other = Chain { rules: other(chain.rules.clone()), ..(**chain).clone() };
    state.insert(key, Object::NftChain(other.into()), entry.owner);
    state
}

fn rules(state: &State, name: &str) -> Vec<Rule> {
    match state.get(&Key::NftChain { chain: name.into() }).map(|entry| &entry.object) {
        Some(Object::NftChain(chain)) => chain.rules.clone(),
        other => panic!("{name} is a chain: {other:?}"),
    }
}
