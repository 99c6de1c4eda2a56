//! Namespaces and the pods of all nodes, as policy sees them.

use std::net::IpAddr;
use std::sync::Arc;

use tartan_netstate::stable_hash;

use crate::{Labels, Protocol};

/// The label that every namespace carries, with its name: the API server sees to it, so no file need say it.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: Arc<str>,
    /// [`NAMESPACE_NAME_LABEL`] among them.
    pub labels: Labels,
}

/// A pod of any node. Its map has it under `NAMESPACE/NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Which of the pods it is that had this name one after the other, see [`uid_of`]; 0 where nobody says.
    pub uid: u128,
    /// The node it runs on; empty while there is none.
    pub node: Arc<str>,
    pub labels: Labels,
    pub service_account: Arc<str>,
    pub addresses: Box<[IpAddr]>,
    /// Those that have a name; of several with one name and protocol, the first.
    pub ports: Box<[NamedPort]>,
    /// It has no addresses of its own, but the node's.
    pub host_network: bool,
    /// It will never run again: its addresses may be another's already.
    pub finished: bool,
}

/// A UID as a number; 0 for none. What is no UUID becomes one that is its own.
pub fn uid_of(text: &str) -> u128 {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    match u128::from_str_radix(&digits, 16) {
        Ok(uid) if digits.len() == 32 => uid,
        _ if text.is_empty() => 0,
        _ => stable_hash(text).into(),
    }
}

/// A port of a container that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

/// A policy object as it was written, because what cannot be honoured in it must deny, not vanish: what it means, and
/// what is wrong with it, is for its dialect to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyText {
    /// The document as JSON, keys in order, without `apiVersion`, `kind`, `metadata` and `status`.
    pub json: Arc<str>,
}
