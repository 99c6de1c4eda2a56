//! DELs that found no agent: each is an empty file `CONTAINER@IFNAME` in `pending-del`, left by the CNI plugin.
//!
//! Invariant: a note goes only after its DEL is in the journal. Done twice, a DEL does nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tartan_api::cni::{CniRequest, Command, NetConf, PodName, Version};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::run::Input;
use crate::waiting::CniReply;

/// Where notes are.
pub(crate) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("pending-del")
}

/// Carries out every note there is, one after the other.
pub(crate) async fn carry_out(directory: &Path, inbox: &mpsc::Sender<Input>) {
    let notes = match list(directory) {
        Ok(notes) => notes,
        Err(error) => return warn!("{}: {error}; DELs noted there wait for the next start", directory.display()),
    };
    for note in notes {
        let name = note.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((container, ifname)) = name.split_once('@') else {
            warn!("{} is no note of a DEL; it is left alone", note.display());
            continue;
        };
        match delete(container, ifname, inbox).await {
            Ok(()) => match fs::remove_file(&note) {
                Ok(()) => info!("{container}/{ifname}: DEL from the time without an agent carried out"),
                Err(error) => warn!("{}: {error}", note.display()),
            },
            Err(why) => {
                warn!("{container}/{ifname}: DEL from the time without an agent: {why}; the next start tries again")
            }
        }
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

async fn delete(container: &str, ifname: &str, inbox: &mpsc::Sender<Input>) -> Result<(), String> {
    let request = CniRequest {
        command: Command::Del,
        version: Version::NEWEST,
        container: container.into(),
        ifname: ifname.into(),
        netns: None,
        pod: PodName::default(),
        netconf: NetConf::default(),
        given: None,
    };
    let (reply, answer) = CniReply::channel();
    let ending = "the agent is ending";
    inbox.send(Input::Cni(Box::new(request), None, reply)).await.map_err(|_| ending)?;
    answer.await.map_err(|_| ending)?.map(drop).map_err(|error| error.to_string())
}
