//! Kernel network state as one ordered value, and the difference of two.
//!
//! A [`State`] is a map from [`Key`] to [`Entry`]. Planners build the wanted one, the kernel door reads the actual
//! one, [`diff()`] makes the ordered list of changes that turns the second into the first.
//!
//! Invariant: an object holds only what the kernel can give back when asked, in the form in which it gives it back;
//! so "wanted equals read" is plain equality. ifindex never appears here: links have names.

pub mod claims;
pub mod diff;
pub mod epoch;
pub mod esp;
pub mod generation;
pub mod layers;
pub mod link;
pub mod neigh;
pub mod netns;
pub mod nft;
pub mod part;
pub mod policy;
mod qdisc;
pub mod route;
pub mod state;
pub mod wireguard;

pub use diff::{Change, Op, Step, diff};
pub use esp::{EspEnd, EspPeer};
pub use generation::{Era, Generation, Stamps};
pub use layers::Layers;
pub use link::{Link, LinkKind, LinkName, Mac, VxlanParams, stable_hash};
pub use neigh::{Fdb, Neigh, Socket};
pub use netns::{Netns, PodNetns};
pub use part::Part;
pub use qdisc::Tbf;
pub use route::{Encap, Route, RouteKind, Rule, Scope};
pub use state::{Conflict, Entry, Key, Object, Owner, State};
pub use wireguard::{PublicKey, WgDevice, WgPeer, beyond};
