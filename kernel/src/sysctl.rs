//! Sysctls below `/proc/sys/net`, of the network namespace the calling thread is in.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};
use tartan_netstate::Key;

use crate::KernelError;
use crate::netlink::Refusal;

/// The value without its line end; none if the kernel has no such sysctl, or no such link.
pub(crate) fn read(key: &Key) -> Result<Option<Arc<str>>, KernelError> {
    let Some(path) = path(key) else { return Ok(None) };
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim_end().into())),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(Refusal::of(&error).doing(format!("read {key}"))),
    }
}

/// Sets the value.
pub(crate) fn write(key: &Key, value: &str) -> Result<(), KernelError> {
    let failed = |error: io::Error| Refusal::of(&error).doing(format!("set {key} to {value}"));
    let path = path(key).ok_or_else(|| failed(Errno::EINVAL.into()))?;
    fs::write(path, value).map_err(failed)
}

/// Makes `/proc/sys` writable again where a container runtime has mounted it read-only for us, in our mount namespace
/// alone. Needs CAP_SYS_ADMIN, which entering pods' namespaces needs anyway; where it fails, each write says so.
pub(crate) fn make_writable() {
    let sys = "/proc/sys";
    if statvfs(sys).is_ok_and(|stat| stat.flags().contains(FsFlags::ST_RDONLY)) {
        let none: Option<&str> = None;
        let flags =
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let _refused = mount(none, sys, none, flags, none);
    }
}

fn absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

/// None for what is no sysctl and for names that lead out of `/proc/sys/net`.
fn path(key: &Key) -> Option<PathBuf> {
    let root = PathBuf::from("/proc/sys/net");
    let clean = |name: &str| !name.split('/').any(|part| part == ".." || part.is_empty());
    match key {
        Key::Sysctl { name, .. } if clean(name) => Some(root.join(&**name)),
        Key::UplinkSysctl { link, name } | Key::LinkSysctl { link, name, .. } if clean(name) => {
            let (family, name) = name.split_once('/')?;
            Some(root.join(family).join("conf").join(link.as_str()).join(name))
        }
        _ => None,
    }
}
