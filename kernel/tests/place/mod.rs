//! A test's namespaces as a runtime would hand them over.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::os::unix::fs::MetadataExt;

use tartan_netstate::PodNetns;

use crate::netns::Netns;

/// The pods' namespaces of a test.
pub struct Place {
    pub held: Vec<Netns>,
    pub pods: Vec<PodNetns>,
}

impl Place {
    /// Two pods.
    pub fn new() -> Place {
        let held: Vec<_> = (0..2).map(|_| Netns::new()).collect();
        let pods = held.iter().map(pod_netns).collect();
        Place { held, pods }
    }
}

/// A namespace with the path that leads to it while its thread lives.
pub fn pod_netns(netns: &Netns) -> PodNetns {
    let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), netns.tid);
    let file = std::fs::metadata(&path).unwrap();
    PodNetns { dev: file.dev(), ino: file.ino(), path: path.into() }
}
