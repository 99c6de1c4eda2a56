//! DELs that found no agent: each is an empty file `CONTAINER@IFNAME` in `pending-del`, left by the CNI plugin.
//!
//! Invariant: a note goes only after its DEL is in the journal. Done twice, a DEL does nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tartan_model::Attachment;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::run::Input;

/// Where notes are.
pub(crate) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("pending-del")
}

/// Hands every note there is to the loop. What is returned clears them away, once the journal has them; the kernel may
/// take longer.
pub(crate) async fn hand_on(directory: &Path, inbox: &mpsc::Sender<Input>) -> impl Future<Output = ()> + use<> {
    let notes = list(directory).unwrap_or_else(|error| {
        warn!("{}: {error}; DELs noted there wait for the next start", directory.display());
        Vec::new()
    });
    let notes: Vec<_> = notes.into_iter().filter_map(|note| Some((attachment(&note)?, note))).collect();
    let (written, answer) = oneshot::channel();
    if !notes.is_empty() {
        let ids = notes.iter().map(|(id, _)| id.clone()).collect();
        // If the loop has ended, nobody answers either.
        let _ended = inbox.send(Input::LetGo(ids, written)).await;
    }
    async move {
        // Without an answer the next start does it again.
        if answer.await.is_ok() {
            notes.iter().for_each(|(id, note)| clear_away(id, note));
        }
    }
}

/// Of which attachment the note is.
fn attachment(note: &Path) -> Option<Arc<str>> {
    let name = note.file_name().unwrap_or_default().to_string_lossy();
    let named = name.split_once('@').map(|(container, ifname)| Attachment::id_of(container, ifname));
    if named.is_none() {
        warn!("{} is no note of a DEL; it is left alone", note.display());
    }
    named
}

fn clear_away(id: &str, note: &Path) {
    match fs::remove_file(note) {
        Ok(()) => info!("{id}: DEL from the time without an agent carried out"),
        // Its plugin has found an agent, and has taken it back.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn!("{}: {error}; it is carried out again at each start", note.display()),
    }
}

/// Notes in the order of their names; none where no plugin has ever left one.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut notes = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    notes.sort();
    Ok(notes)
}
