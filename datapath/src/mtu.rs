//! The MTU that this node's pods have in the kernel, whatever the plan says.
//!
//! Invariant: it is the largest of all default routes of pods that the kernel holds, found by what differs from last
//! time; `all` is the slow, obvious way to the same.

use std::collections::BTreeMap;

use tartan_netstate::{Key, Netns, Object, State};

/// The routes' MTUs as last looked at.
#[derive(Default)]
pub struct InForce {
    seen: State,
    /// How many routes have each.
    routes: BTreeMap<u32, usize>,
}

impl InForce {
    /// Largest MTU that a default route of a pod has, in bytes; none without pods.
    pub fn of(&mut self, mirror: &State) -> Option<u32> {
        for key in self.seen.differing_keys(mirror) {
            if let Some(mtu) = mtu(&self.seen, key) {
                let left = self.routes.entry(mtu).or_default();
                *left -= 1;
                if *left == 0 {
                    self.routes.remove(&mtu);
                }
            }
            if let Some(mtu) = mtu(mirror, key) {
                *self.routes.entry(mtu).or_default() += 1;
            }
        }
        self.seen = mirror.clone();
        self.routes.last_key_value().map(|(mtu, _)| *mtu)
    }
}

fn mtu(state: &State, key: &Key) -> Option<u32> {
    match key {
        Key::Route { ns: Netns::Pod(_), dst, .. } if dst.prefix_len() == 0 => match &state.get(key)?.object {
            Object::Route(route) => route.mtu,
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tartan_netstate::{Owner, PodNetns, Route};

    use super::*;

    fn all(mirror: &State) -> Option<u32> {
        mirror.iter().filter_map(|(key, _)| mtu(mirror, key)).max()
    }

    /// In this namespace (0: the node's), to everywhere or to one address, with this MTU or none.
    fn route((ns, everywhere, route_mtu): &(u8, bool, Option<u8>)) -> (Key, Object) {
        let pod = |ino| PodNetns { dev: 4, ino, path: format!("/run/netns/{ino}").into() };
        let ns = if *ns == 0 { Netns::Host } else { pod(u64::from(*ns)).into() };
        let dst = if *everywhere { "0.0.0.0/0" } else { "192.0.2.1/32" }.parse().unwrap();
        let route = Route { mtu: route_mtu.map(|mtu| 1400 + u32::from(mtu)), ..Route::unreachable() };
        (Key::Route { ns, table: 254, dst, metric: 1024 }, Object::Route(route.into()))
    }

    proptest! {
        #[test]
        fn what_differs_leads_to_what_all_say(
            steps in prop::collection::vec(
                prop::collection::vec((0..4_u8, any::<bool>(), prop::option::of(0..3_u8)), 0..6), 1..8),
        ) {
            let mut in_force = InForce::default();
            for routes in steps {
                let mut mirror = State::new();
                for (key, object) in routes.iter().map(route) {
                    mirror.insert(key, object, Owner::Read);
                }
                prop_assert_eq!(in_force.of(&mirror), all(&mirror));
            }
        }
    }
}
