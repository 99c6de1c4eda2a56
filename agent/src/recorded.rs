//! What a node knows of the cluster, for the tools: the snapshot's format, cut into texts that fit into frames.
//!
//! Invariant: an address that was given to a pod here is that pod's in the record, whatever the API server says, as it is
//! for policy; so the record can be judged without this node's attachments.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::sync::Arc;

use tartan_model::{Pod, World};

use crate::snapshot;

/// Text of a frame, in bytes; as JSON it is at most twice as long, which a frame has room for.
const PART: usize = 256 << 10;

/// Hands on what is written as texts.
struct Texts<F> {
    /// False: nobody wants more.
    tell: F,
    /// The beginning of a character whose end is yet to come.
    rest: Vec<u8>,
}

/// What there is to record of a world.
pub fn of(world: &World) -> World {
    let seen = world.of_one_moment();
    let mut record = seen.as_deref().unwrap_or(world).of_the_cluster();
    let mut given: BTreeMap<IpAddr, String> = BTreeMap::new();
    for it in world.attachments.values() {
        given.extend(it.addresses.iter().map(|(_, address)| (*address, it.pod())));
    }
    if given.is_empty() {
        return record;
    }
    // There may be very many pods, and the loop waits.
    let mut own: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
    for (address, pod) in &given {
        own.entry(pod).or_default().push(*address);
    }
    for (key, pod) in record.pods.clone() {
        let own = own.get(&*key).into_iter().flatten().copied();
        let of_others = |address: &IpAddr| given.contains_key(address) && !pod.host_network;
        let addresses: Box<[IpAddr]> = own.chain(pod.addresses.iter().copied().filter(|it| !of_others(it))).collect();
        if addresses != pod.addresses {
            record.pods.insert(key, Arc::new(Pod { addresses, ..(*pod).clone() }));
        }
    }
    record
}

/// Writes a record, text by text, until it is told that nobody wants more.
pub fn write(record: &World, tell: impl FnMut(String) -> bool) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(PART, Texts { tell, rest: Vec::new() });
    snapshot::write_all(&mut out, record)?;
    out.flush()
}

impl<F: FnMut(String) -> bool> Write for Texts<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART);
        self.rest.extend_from_slice(&bytes[..taken]);
        let whole = match std::str::from_utf8(&self.rest) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let rest = self.rest.split_off(whole);
        let text = String::from_utf8(std::mem::replace(&mut self.rest, rest)).map_err(io::Error::other)?;
        if (self.tell)(text) { Ok(taken) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tartan_model::{Attachment, Features, Kind, Object, ObjectId, PerFamily, PolicyText};
    use tartan_netstate::{Mac, PodNetns};

    use super::*;

    fn pod(address: &str, host_network: bool) -> Arc<Pod> {
        Arc::new(Pod {
            uid: 0,
            node: "n1".into(),
            labels: Default::default(),
            service_account: "".into(),
            addresses: [address.parse().unwrap()].into(),
            ports: [].into(),
            host_network,
            finished: false,
        })
    }

    /// A world of which the API server is late: it says that `a/old` has the address that `a/new` was given.
    fn late() -> World {
        let mut world = World::new("n1".into(), Features::default());
        world.pods.insert("a/old".into(), pod("10.0.0.1", false));
        world.pods.insert("a/new".into(), pod("10.0.0.9", false));
        world.pods.insert("a/host".into(), pod("192.0.2.1", true));
        // Longer than a frame's text, with characters of every length.
        let note = "aßŧ€😀".repeat(PART / 4);
        let text = PolicyText { json: format!("{{\"spec\":{{\"note\":\"{note}\"}}}}").into() };
        world.policies.insert(ObjectId { kind: Kind::NetworkPolicy, name: "a/p".into() }, text.into());
        world.attach(Attachment {
            id: "c/eth0".into(),
            container: "c".into(),
            ifname: "eth0".into(),
            netns: PodNetns { dev: 1, ino: 1, path: "/x".into() },
            pod_namespace: "a".into(),
            pod_name: "new".into(),
            addresses: PerFamily { v4: Some("10.0.0.1".parse().unwrap()), v6: None },
            mac: Mac([2, 0, 0, 0, 0, 1]),
            ports: Vec::new(),
            limits: Default::default(),
            network: None,
            answered: true,
        });
        world
    }

    #[test]
    fn an_address_is_of_the_pod_it_was_given_to() {
        let record = of(&late());
        let addresses = |key: &str| record.pods[key].addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(addresses("a/new"), ["10.0.0.1", "10.0.0.9"]);
        assert_eq!(addresses("a/old"), [""; 0]);
        assert_eq!(addresses("a/host"), ["192.0.2.1"]);
    }

    #[test]
    fn a_record_is_cut_into_frames_and_read_back() {
        let record = of(&late());
        let mut texts = Vec::new();
        write(&record, |text| {
            texts.push(text);
            true
        })
        .unwrap();
        assert!(texts.len() > 2 && texts.iter().all(|text| text.len() <= PART + 3), "{}", texts.len());
        let (node, objects) = snapshot::decode_all(texts.concat().as_bytes(), Path::new("record")).unwrap();
        let of =
            |kind| objects.iter().filter(|(id, _)| id.kind == kind).map(|(_, it)| it.clone()).collect::<Vec<Object>>();
        assert_eq!(node, "n1");
        assert_eq!(of(Kind::Pod), record.pods.values().cloned().map(Object::Pod).collect::<Vec<_>>());
        assert_eq!(of(Kind::NetworkPolicy), record.policies.values().cloned().map(Object::Policy).collect::<Vec<_>>());
        let refused = write(&record, |_| false).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
    }
}
