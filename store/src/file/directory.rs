//! A directory held open.
//!
//! Invariant: what is read is of this one directory, wherever it is moved to and whatever comes in its place. By their
//! paths, all files of a directory that has just been moved would be gone.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};

use super::is_document;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// See the module. It may be a mount, which cannot be unmounted meanwhile.
pub(super) struct Directory(File);

impl Directory {
    pub(super) fn open(path: &Path) -> io::Result<Directory> {
        Ok(Directory(File::from(open(path, DIRECTORY, Mode::empty())?)))
    }

    pub(super) fn identity(&self) -> io::Result<Identity> {
        Ok(Identity::of(&self.0.metadata()?))
    }

    /// Of the files that are read, in order.
    pub(super) fn names(&self) -> io::Result<BTreeSet<Arc<str>>> {
        let mut names = BTreeSet::new();
        for entry in Dir::openat(&self.0, ".", DIRECTORY, Mode::empty())? {
            names.extend(entry?.file_name().to_str().ok().filter(|name| is_document(name)).map(Arc::from));
        }
        Ok(names)
    }

    /// Opens one of its files to read it. What it is may be a pipe, for whose other end nobody waits.
    pub(super) fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        Ok(openat(&self.0, name, flags, Mode::empty())?.into())
    }

    /// Whether it is a link to a file, or one of several.
    pub(super) fn is_link(&self, name: &str) -> bool {
        let there = fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        there.is_ok_and(|it| it.st_nlink > 1 || SFlag::from_bits_truncate(it.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK)
    }
}

/// What tells a file or directory from all others that are there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Identity {
        Identity { device: metadata.dev(), inode: metadata.ino() }
    }
}
