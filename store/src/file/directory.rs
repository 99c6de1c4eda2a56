//! A directory held open.
//!
//! Invariant: what is read is of this one directory, wherever it is moved to and whatever comes in its place. By their
//! paths, all files of a directory that has just been moved would be gone.

use std::collections::BTreeSet;
use std::fs::{File, FileType, Metadata, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::is_document;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
/// What has a file's name may be a pipe, for whose other end nobody waits.
const AT_ONCE: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_CLOEXEC);
/// Less what the process's umask takes away.
const FOR_ALL: Mode = Mode::from_bits_truncate(0o666);

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

    /// Opens one of its files to read it, with its length; what is no file is named.
    pub(super) fn document(&self, name: &str) -> io::Result<(impl io::Read + use<>, u64)> {
        let file: File = match openat(&self.0, name, OFlag::O_RDONLY | AT_ONCE, Mode::empty()) {
            Ok(file) => file.into(),
            Err(Errno::ENXIO) => return Err(no_file("a socket or a device")),
            Err(errno) => return Err(errno.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(no_file(what_it_is(metadata.file_type())));
        }
        if metadata.len() > MAX_FILE {
            return Err(io::Error::other(format!("larger than {} MiB", MAX_FILE >> 20)));
        }
        Ok((file.take(MAX_FILE), metadata.len()))
    }

    /// All that one of its files holds.
    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let (mut file, length) = self.document(name)?;
        // Room for all of it, and a byte more to see its end.
        let mut bytes = Vec::with_capacity(length as usize + 1);
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether something has that name, at the end of all links.
    pub(super) fn has(&self, name: &str) -> bool {
        fstatat(&self.0, name, AtFlags::empty()).is_ok()
    }

    /// Whether nobody will close it who has written it: a link to a file, one of several, or no file at all.
    pub(super) fn is_whole(&self, name: &str) -> bool {
        self.stat(name).is_some_and(|it| it.st_nlink > 1 || kind(&it) != SFlag::S_IFREG)
    }

    pub(super) fn is_symlink(&self, name: &str) -> bool {
        self.stat(name).is_some_and(|it| kind(&it) == SFlag::S_IFLNK)
    }

    pub(super) fn permissions(&self, name: &str) -> Option<Permissions> {
        Some(Permissions::from_mode(self.stat(name)?.st_mode & 0o7777))
    }

    /// Opens a file that is there whatever is in it, made if there is none.
    pub(super) fn mark(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND | AT_ONCE;
        Ok(openat(&self.0, name, flags, FOR_ALL)?.into())
    }

    /// Makes a file, in place of whatever had its name.
    pub(super) fn create(&self, name: &str) -> io::Result<File> {
        match self.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        Ok(openat(&self.0, name, flags, FOR_ALL)?.into())
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.0, from, &self.0, to)?)
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Of the name itself, be it a link.
    fn stat(&self, name: &str) -> Option<FileStat> {
        fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn no_file(what: &str) -> io::Error {
    io::Error::other(format!("it is {what}, not a file: move it out of the directory"))
}

fn what_it_is(it: FileType) -> &'static str {
    match it {
        it if it.is_dir() => "a directory",
        it if it.is_fifo() => "a named pipe",
        _ => "a device",
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
