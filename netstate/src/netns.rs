//! Which network namespace an object lives in: the node's own or a pod's.

use std::fmt;
use std::sync::Arc;

/// The namespace part of a [`crate::Key`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Netns {
    /// The node's own namespace, where the agent runs.
    Host,
    /// A pod's namespace. Shared: every key inside the pod names it.
    Pod(Arc<PodNetns>),
}

/// A pod's network namespace as the runtime handed it over.
///
/// Device and inode say *which* namespace; the path only says where to find it again. A path that by now leads to
/// another inode is another namespace, and must not be touched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct PodNetns {
    /// Device number of the nsfs file.
    pub dev: u64,
    /// Inode number of the nsfs file.
    pub ino: u64,
    /// Where the runtime mounted it, e.g. `/run/netns/cni-…`.
    pub path: Arc<str>,
}

impl From<PodNetns> for Netns {
    fn from(pod: PodNetns) -> Netns {
        Netns::Pod(Arc::new(pod))
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Netns::Host => f.write_str("host"),
            Netns::Pod(pod) => write!(f, "{pod}"),
        }
    }
}

impl fmt::Display for PodNetns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (nsfs {}:{})", self.path, self.dev, self.ino)
    }
}
