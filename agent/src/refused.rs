//! What the kernel refuses, and what cannot be looked at, as conditions: one pure function from an object's owner to what
//! the condition is about.

use std::collections::BTreeSet;
use std::sync::Arc;

use tartan_model::{Attachment, Condition, Failed, World};
use tartan_netstate::{Key, Owner};

/// A condition for each object that the kernel refuses now, and one if it cannot even be read. What hangs on a link that is
/// refused is refused with it, and says nothing new.
pub fn conditions(world: &World) -> impl Iterator<Item = Condition> {
    let unknown = world.programmed.unknown.as_ref().map(|why| Condition {
        about: format!("Node/{}", world.local),
        field: String::new(),
        reason: "KernelUnreadable",
        message: format!("what the kernel holds cannot be read: {why}; until it can, only pods come and go"),
        fix: "it is tried again by itself; if this stays, see the agent's log and the kernel's (dmesg)".into(),
    });
    let links: BTreeSet<_> = world.programmed.failures.iter().filter_map(|failed| failed.key.as_link()).collect();
    let on_one = |key: &Key| key.link().is_some_and(|link| links.contains(&(key.netns().clone(), link.clone())));
    let failures: Vec<Condition> = world
        .programmed
        .failures
        .iter()
        .filter(|failed| !on_one(&failed.key))
        .map(|failed| condition(world, failed))
        .collect();
    unknown.into_iter().chain(failures).chain(hidden(world))
}

/// A condition for each pod whose inside this agent cannot find.
fn hidden(world: &World) -> impl Iterator<Item = Condition> {
    let is_hidden = |pod: &&Arc<Attachment>| world.programmed.hidden.contains(&pod.netns);
    world.attachments.values().filter(is_hidden).map(|attachment| Condition {
        about: pod(world, &attachment.id),
        field: String::new(),
        reason: "PodHidden",
        message: format!(
            "the agent finds no network namespace at {}: the pod goes on as it is, but what is changed inside it is not put back, and it is not told of a new MTU",
            attachment.netns.path
        ),
        fix: "let the agent see what the runtime mounts there (in a container: a hostPath volume with mountPropagation HostToContainer)".into(),
    })
}

fn condition(world: &World, failed: &Failed) -> Condition {
    let Failed { key, owner, error, netns_gone: _ } = failed;
    let (about, field, fix) = blame(world, owner);
    // Most errors begin with what was tried, the object included.
    let message = match error.contains(&key.to_string()) {
        true => format!("the kernel refuses to {error}"),
        false => format!("the kernel refuses {key}: {error}"),
    };
    let fix = format!("it is tried again by itself; if this stays, {fix}");
    Condition { about, field: field.into(), reason: "KernelRefused", message, fix }
}

/// On whose behalf: the object, its field, and where to look.
fn blame(world: &World, owner: &Owner) -> (String, &'static str, &'static str) {
    match owner {
        Owner::Pod(id) => (pod(world, id), "", "delete the pod and let it be made anew"),
        Owner::Peer(node) => {
            let fix = "look at this node's own addresses and routes (`ip address`, `ip route get` to that node): its pods cannot be reached from here";
            (format!("Node/{node}"), "", fix)
        }
        Owner::Fabric(instance) => {
            let fix = match instance.split_once('/') {
                Some(("ipip", "ipv4")) => {
                    "load the kernel modules that the fabric needs (`modprobe -a ipip sit`), or choose another fabric"
                }
                Some(("ipip", _)) => {
                    "load the kernel module that the fabric needs (`modprobe ip6_tunnel`), or choose another fabric"
                }
                Some(("udp", _)) => {
                    "load the kernel module that the fabric needs (`modprobe tun`), let the agent see /dev/net/tun, free UDP port 8285 (`ss -lunp`), or choose another fabric"
                }
                Some(("wireguard", _)) => {
                    "load the kernel module that WireGuard needs (`modprobe wireguard`; in its place `tun`, which an engine needs, and let the agent see /dev/net/tun), free its UDP ports (`ss -lunp`, spec.wireguard.port), or choose another fabric or no encryption"
                }
                Some(("ipsec", _)) => {
                    "load the kernel modules that IPsec needs (`modprobe -a xfrm_user xfrm_interface esp4 esp6`), or choose another fabric, another encryption or none"
                }
                _ => "load the kernel module that the fabric needs (`modprobe vxlan`), or choose another fabric",
            };
            ("NetworkConfig/default".into(), "spec.fabric", fix)
        }
        Owner::Policy => {
            let fix = "look for what the kernel lacks, e.g. memory; until it works all that policy said before stays in force";
            ("NetworkConfig/default".into(), "spec.policy", fix)
        }
        Owner::Node | Owner::Read => (
            format!("Node/{}", world.local),
            "",
            "look for what else manages this object, or for what the kernel lacks",
        ),
    }
}

fn pod(world: &World, id: &str) -> String {
    match world.attachments.get(id) {
        Some(pod) if !pod.pod_name.is_empty() => format!("Pod/{}/{}", pod.pod_namespace, pod.pod_name),
        Some(pod) => format!("container {}", pod.container),
        None => format!("container {id}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tartan_model::{Features, Programmed};
    use tartan_netstate::{LinkName, Netns};

    use super::*;

    #[test]
    fn the_owner_says_what_it_is_about() {
        let check = |owner: Owner, about: &str, field: &str| {
            let mut world = World::new("n1".into(), Features::default());
            let key = Key::Sysctl { ns: Netns::Host, name: "ipv4/ip_forward".into() };
            let failures = Arc::from([Failed { key, owner, error: "write: EROFS".into(), netns_gone: false }]);
            let programmed = Programmed { failures, ..Programmed::default() };
            world.programmed(programmed, Arc::default(), Instant::now());
            let said: Vec<Condition> = conditions(&world).collect();
            assert_eq!(said.len(), 1);
            assert_eq!((&*said[0].about, &*said[0].field), (about, field));
            assert!(said[0].message.ends_with("ipv4/ip_forward in host: write: EROFS"), "{}", said[0].message);
        };
        check(Owner::Node, "Node/n1", "");
        check(Owner::Peer("n2".into()), "Node/n2", "");
        check(Owner::Policy, "NetworkConfig/default", "spec.policy");
        check(Owner::Fabric("vxlan-1".into()), "NetworkConfig/default", "spec.fabric");
        check(Owner::Pod("c1/eth0".into()), "container c1/eth0", "");
    }

    #[test]
    fn a_link_that_is_refused_speaks_for_what_is_on_it() {
        let mut world = World::new("n1".into(), Features::default());
        let [one, other] = ["ttx1", "ttx2"].map(|name| LinkName::new(name).unwrap());
        let link = |name: &LinkName| Key::Link { ns: Netns::Host, link: name.clone() };
        let sysctl = |name: &LinkName| Key::LinkSysctl { ns: Netns::Host, link: name.clone(), name: "ipv4/x".into() };
        let failed = |key| Failed { key, owner: Owner::Node, error: "no".into(), netns_gone: false };
        let failures = [link(&one), sysctl(&one), sysctl(&other)].map(failed);
        world.programmed(
            Programmed { failures: failures.into(), ..Programmed::default() },
            Arc::default(),
            Instant::now(),
        );
        let said: Vec<String> = conditions(&world).map(|condition| condition.message).collect();
        let want = ["link ttx1 in host", "sysctl ipv4/x of ttx2 in host"];
        assert_eq!(said, want.map(|key| format!("the kernel refuses {key}: no")));
    }

    #[test]
    fn the_object_is_named_once() {
        let mut world = World::new("n1".into(), Features::default());
        let key = Key::Sysctl { ns: Netns::Host, name: "ipv4/ip_forward".into() };
        let (error, name) = (format!("add {key}: EROFS").into(), key.to_string());
        let failures = Arc::from([Failed { key, owner: Owner::Peer("n2".into()), error, netns_gone: false }]);
        world.programmed(Programmed { failures, ..Programmed::default() }, Arc::default(), Instant::now());
        let said: Vec<Condition> = conditions(&world).collect();
        assert_eq!(said[0].message, format!("the kernel refuses to add {name}: EROFS"));
    }

    #[test]
    fn a_kernel_that_cannot_be_read_is_said_too() {
        let mut world = World::new("n1".into(), Features::default());
        let unknown = Some("links changed while it was read".into());
        world.programmed(Programmed { unknown, ..Programmed::default() }, Arc::default(), Instant::now());
        let said: Vec<Condition> = conditions(&world).collect();
        assert_eq!(said.len(), 1);
        assert!(said[0].message.contains("links changed while it was read"), "{}", said[0].message);
    }
}
