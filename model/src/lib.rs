//! World: what a node knows, as one persistent value, and the values it is made of.
//!
//! Invariant: plain values only. Nothing here reads a clock, a file or the kernel.

pub mod cidr;
pub mod clock;
pub mod condition;
pub mod config;
pub mod features;
pub mod flannel;
pub mod host;
pub mod labels;
pub mod memo;
pub mod node;
pub mod object;
pub mod pod;
pub mod pool;
pub mod selector;
pub mod time;
mod unlisted;
pub mod workload;
pub mod world;

pub use cidr::{Family, PerFamily, overlap};
pub use clock::Clock;
pub use condition::{Condition, NodeCondition, Trouble};
pub use config::{
    AddressChoice, Config, Encryption, FabricMode, HostFirewall, IpsecConfig, PolicyMode, VxlanConfig, WireguardConfig,
};
pub use features::Features;
pub use flannel::{Flannel, FlannelBackend};
pub use host::{DefaultRoute, EncryptionState, ForwardBlock, Host, HostLink};
pub use labels::{Labelled, Labels};
pub use memo::Memo;
pub use node::{Acknowledged, Advert, Annotations, Availability, Endpoint, Heard, Node, NodeNetwork, Placement, Said};
pub use object::{Kind, Object, ObjectId, Revision, StoreEvent};
pub use pod::{Attachment, Limit, Limits, NAMELESS, PortMapping, Protocol};
pub use pool::{Across, Block, Encapsulation, Holder, Part, Pool, Reservation};
pub use selector::Selector;
pub use time::{http_date, rfc3339};
pub use workload::{NamedPort, Namespace, Pod, PolicyText};
pub use world::{Failed, Passes, Passing, Programmed, Why, World};
