//! `STATE_DIR/pending-del`: DELs that found no agent. The agent carries them out when it starts.
//!
//! A note is an empty file whose name says all, so it is there wholly or not at all, whenever the power fails.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// What names an attachment. Neither part holds a `/`, and the first one no `@`: see [`crate::input`].
pub(crate) struct Id {
    pub(crate) container: String,
    pub(crate) ifname: String,
}

/// A note that was left.
pub(crate) struct Note(PathBuf);

/// Notes that the attachment is to go.
pub(crate) fn leave(state_dir: &Path, id: &Id) -> io::Result<Note> {
    let directory = state_dir.join("pending-del");
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let path = directory.join(format!("{}@{}", id.container, id.ifname));
    File::create(&path)?;
    Ok(Note(path))
}

impl Note {
    /// The agent has been told after all. A note that stays is carried out again, which does nothing.
    pub(crate) fn take_back(self) {
        let _there_or_read_already = std::fs::remove_file(self.0);
    }
}
