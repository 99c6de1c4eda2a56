//! What the kernel refuses, and what cannot be looked at, as conditions: one pure function from an object's owner to what
//! the condition is about.

use std::collections::BTreeSet;
use std::sync::Arc;

use tartan_model::{Attachment, Condition, Failed, Why, World};
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
    let left_out = world.programmed.left_out.as_ref().map(|why| Condition {
        about: format!("Node/{}", world.local),
        field: String::new(),
        reason: "PartUnreadable",
        message: format!(
            "what carries or encrypts packets beside the kernel cannot be read: {why}; it is left as it is, {}",
            if world.programmed.read { "and all the rest goes on" } else { "and so is all the rest: this agent has just begun" }
        ),
        fix: "it is tried again by itself, once a minute at least; if this stays, see the log of the engine's holder (the DaemonSet tartan-holder) and this node's key pairs, files `*.key` below stateDir".into(),
    });
    let links: BTreeSet<_> = world.programmed.failures.iter().filter_map(|failed| failed.key.as_link()).collect();
    let on_one = |key: &Key| key.link().is_some_and(|link| links.contains(&(key.netns().clone(), link.clone())));
    let failures: Vec<Condition> = world
        .programmed
        .failures
        .iter()
        .filter(|failed| failed.why != Why::EngineGivesWay && !on_one(&failed.key))
        .map(|failed| condition(world, failed))
        .collect();
    unknown.into_iter().chain(left_out).chain(failures).chain(passed_on(world)).chain(hidden(world))
}

/// One condition for all that an engine leaves to the next one: nothing is wrong with them.
fn passed_on(world: &World) -> Option<Condition> {
    let waits = || world.programmed.failures.iter().filter(|failed| failed.why == Why::EngineGivesWay);
    let first = waits().next()?;
    Some(Condition {
        about: format!("Node/{}", world.local),
        field: String::new(),
        reason: "EngineGivesWay",
        message: format!(
            "the engine is giving way to another program, and tells that one alone of what is new: {} waits, and {} more",
            first.key,
            waits().count() - 1
        ),
        fix: "nothing: it is done in a second or less, in eight where a peer is down; if this stays, the other program does not start, and the log of the engine's holder (the DaemonSet tartan-holder) says why".into(),
    })
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
    let Failed { key, owner, error, why: _ } = failed;
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
    use tartan_netstate::{LinkName, Netns, PublicKey};

    use super::*;

    #[test]
    fn the_owner_says_what_it_is_about() {
        let check = |owner: Owner, about: &str, field: &str| {
            let mut world = World::new("n1".into(), Features::default());
            let key = Key::Sysctl { ns: Netns::Host, name: "ipv4/ip_forward".into() };
            let failures = Arc::from([Failed { key, owner, error: "write: EROFS".into(), why: Why::Refused }]);
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
        let failed = |key| Failed { key, owner: Owner::Node, error: "no".into(), why: Why::Refused };
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
    fn what_an_engine_leaves_to_the_next_one_is_no_refusal() {
        let mut world = World::new("n1".into(), Features::default());
        let link = LinkName::new("ttxs0").unwrap();
        let failed = |number: u8, why| {
            let key = Key::WgPeer { link: link.clone(), public_key: PublicKey([number; 32]) };
            Failed { key, owner: Owner::Fabric("wireguard/ipv4".into()), error: "no".into(), why }
        };
        let failures =
            Arc::from([failed(1, Why::EngineGivesWay), failed(2, Why::Refused), failed(3, Why::EngineGivesWay)]);
        world.programmed(Programmed { failures, ..Programmed::default() }, Arc::default(), Instant::now());
        let said: Vec<Condition> = conditions(&world).collect();
        let reasons: Vec<(&str, &str)> = said.iter().map(|it| (it.reason, &*it.about)).collect();
        assert_eq!(reasons, [("KernelRefused", "NetworkConfig/default"), ("EngineGivesWay", "Node/n1")]);
        assert!(said[1].message.ends_with(" waits, and 1 more") && !said[1].fix.contains("modprobe"), "{said:?}");
    }

    #[test]
    fn the_object_is_named_once() {
        let mut world = World::new("n1".into(), Features::default());
        let key = Key::Sysctl { ns: Netns::Host, name: "ipv4/ip_forward".into() };
        let (error, name) = (format!("add {key}: EROFS").into(), key.to_string());
        let failures = Arc::from([Failed { key, owner: Owner::Peer("n2".into()), error, why: Why::Refused }]);
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
        for (read, then) in [(true, "all the rest goes on"), (false, "so is all the rest")] {
            let left_out = Some("the engine at /run/e.sock: EAGAIN".into());
            let programmed = Programmed { left_out, read, ..Programmed::default() };
            world.programmed(programmed, Arc::default(), Instant::now());
            let said: Vec<Condition> = conditions(&world).collect();
            assert_eq!(said.len(), 1);
            assert!(["EAGAIN", then].iter().all(|part| said[0].message.contains(part)), "{}", said[0].message);
        }
    }
}
