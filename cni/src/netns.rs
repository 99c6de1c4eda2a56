//! The pod's network namespace, as a descriptor that the agent can enter whatever its own mounts are.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use tartan_api::cni::{CniError, NetnsFile, code};

/// Opens CNI_NETNS and looks which namespace it is.
pub(crate) fn open(path: &str) -> Result<(File, NetnsFile), CniError> {
    let wrong = |why: String, fix: &str| CniError::new(code::BAD_ENVIRONMENT, format!("CNI_NETNS={path}: {why}"), fix);
    let gone = "the runtime has to make the namespace before ADD";
    let file = File::open(path).map_err(|error| wrong(error.to_string(), gone))?;
    let is_namespace = fstatfs(&file).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC);
    if !is_namespace {
        return Err(wrong("not a namespace".into(), "it is to be a file as in /run/netns, or /proc/PID/ns/net"));
    }
    let stat = file.metadata().map_err(|error| wrong(error.to_string(), gone))?;
    let same = |own: std::fs::Metadata| (own.dev(), own.ino()) == (stat.dev(), stat.ino());
    if std::fs::metadata("/proc/self/ns/net").is_ok_and(same) {
        return Err(wrong("the node's own namespace".into(), "pods of the host network need no CNI plugin"));
    }
    let netns = NetnsFile { path: path.into(), dev: stat.dev(), ino: stat.ino() };
    Ok((file, netns))
}
