//! The door to the kernel: reads and applies [`State`]; nothing else in Tartan talks netlink or nftables.
//!
//! Two implementations of one trait: [`linux::Linux`] and, for tests, [`fake::Fake`]. [`thread`] runs either on a thread
//! of its own, which owns the mirror and makes the kernel equal to the latest wanted state.
//!
//! Invariant: only what carries one of our claims is read, changed or deleted.

mod addr;
mod channel;
pub mod conntrack;
pub mod echo;
pub mod fake;
mod family;
pub mod foreign;
mod genetlink;
mod gravedigger;
mod host;
mod ipsec;
pub mod keys;
mod link;
pub mod linux;
mod namespace;
mod neigh;
mod netconf;
mod netlink;
mod netns;
pub mod nflog;
mod nfnetlink;
pub mod nft;
mod notify;
pub mod offload;
pub mod passed;
pub mod path;
mod qdisc;
mod read;
mod route;
mod rule;
mod scope;
pub mod secret;
mod strangers;
mod sysctl;
pub mod thread;
mod tun;
mod under_way;
mod wireguard;
mod xfrm;

use std::os::fd::OwnedFd;

pub use scope::Scope;
use tartan_model::{EncryptionState, Failed, Features, Host, Why};
use tartan_netstate::{Change, Key, LinkName, Object, PodNetns, State, Step};

/// A kernel, real or fake. Blocking; called from one thread.
pub trait Kernel: Send {
    /// What this kernel can do. Asked once at start.
    fn features(&mut self) -> Features;

    /// Tells of everything that changes from now on. Called once, before the first read.
    fn subscribe(&mut self, wake: Waker) -> Result<(), KernelError>;

    /// What is ours in `scope`. An error means unknown, never empty.
    fn read(&mut self, scope: &Scope) -> Result<State, KernelError>;

    /// What is there and not ours, but matters: links, addresses, default routes, foreign firewalls.
    fn host(&mut self) -> Result<Host, KernelError>;

    /// What there is of WireGuard and IPsec beside the state, of which the kernel tells nothing. Not a part of [`Kernel::host`], which takes
    /// longer to read.
    fn encryption(&mut self) -> Result<EncryptionState, KernelError>;

    /// Carries the steps out in order and goes on after a failure. Empty: all done. Of those of policy
    /// ([`Key::is_of_policy`]) all fail with one, and for each owner one is told.
    fn apply(&mut self, change: &Change) -> Vec<Failure>;

    /// Somebody has begun to read what is sent into a link of the node's: returns when the kernel has noticed, or when it takes
    /// too long. Until then it drops what is sent there.
    fn wait_for_carrier(&mut self, link: &LinkName);

    /// Begins to delete all condemned links, which takes a while. That they are gone is told as of anybody's.
    fn bury(&mut self);

    /// Reaches a pod's namespace by this descriptor, not by its path, until it is given back.
    fn lend(&mut self, ns: &PodNetns, fd: OwnedFd);

    /// Closes what was lent.
    fn give_back(&mut self, ns: &PodNetns);
}

/// Takes news from the kernel; called from any thread, must not block.
pub type Waker = Box<dyn Fn(Wake) + Send>;

/// What the kernel says on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// An object is now this, or gone. Not sent for what our own requests caused, where the kernel tells.
    Now(Key, Option<Object>),
    /// Something in the scope changed.
    Changed(Scope),
    /// Something that [`Kernel::host`] reports changed.
    Host,
    /// Notifications were lost: everything may have changed.
    Overrun,
}

/// One step of a change that did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step's object.
    pub key: Key,
    /// On whose behalf.
    pub owner: tartan_netstate::Owner,
    /// Why.
    pub error: KernelError,
}

// === impl Failure ===

impl Failure {
    /// Why this step did not work.
    pub fn of(step: &Step, error: KernelError) -> Failure {
        Failure { key: step.key().clone(), owner: step.owner().clone(), error }
    }

    /// Whether what the step was about, or hung on, is not there.
    pub fn is_absence(&self) -> bool {
        use nix::errno::Errno::{ENODEV, ENOENT};
        matches!(self.error, KernelError::Refused { errno: ENOENT | ENODEV, .. })
    }

    /// What World knows of it.
    pub fn told(&self) -> Failed {
        let why = match self.error {
            KernelError::NetnsGone(_) => Why::NetnsGone,
            KernelError::EngineGivesWay { .. } => Why::EngineGivesWay,
            _ => Why::Refused,
        };
        Failed { key: self.key.clone(), owner: self.owner.clone(), error: self.error.to_string().into(), why }
    }
}

/// Why the kernel door could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The kernel refused, with an errno and what it says about it.
    #[error("{doing}: {errno}{}", .says.as_ref().map(|says| format!(" ({says})")).unwrap_or_default())]
    Refused { doing: String, errno: nix::errno::Errno, says: Option<String> },
    /// Somebody else's object has that name; it is left alone.
    #[error(
        "{what} is somebody else's: {theirs}; Tartan leaves it alone. Remove it, or change the setting that makes them meet"
    )]
    Conflict { what: String, theirs: String },
    /// The pod's namespace is gone or another one has its path.
    #[error("network namespace {0} is gone")]
    NetnsGone(PodNetns),
    /// A dump was interrupted or mixed two generations: the answer is unknown, ask again.
    #[error("{0} changed while it was read")]
    Interrupted(&'static str),
    /// An engine is not there, or could not do it.
    #[error("{doing}: {says}")]
    Engine { doing: String, says: String },
    /// An engine leaves it to the program that goes on in its place.
    #[error("{doing}: the engine is giving way to another program, which is to be told")]
    EngineGivesWay { doing: String },
    /// What the node's own value was could not be put on record, and was left as it is.
    #[error("its value from before could not be put on record, so it is not changed: {0}")]
    NotNoted(String),
}
