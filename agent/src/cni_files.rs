//! The plugin and its configuration, where the container runtime looks for them.
//!
//! Invariant: each file is replaced whole; the configuration is written only once the agent can answer for it, since the
//! kubelet takes the file for a network that works, and it stays when the agent ends. Files of others are never touched:
//! one that sorts before ours is what the runtime uses, so it is named, with the command that moves it away.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tartan_api::boot::Boot;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::http::ask;
use crate::run::Input;

/// Name of the plugin's program, beside the agent's and in the folder of plugins.
const PLUGIN: &str = "tartan-cni";
/// Before what others usually call theirs.
const CONFLIST: &str = "05-tartan.conflist";
/// Endings that runtimes read.
const READ: [&str; 3] = [".conf", ".conflist", ".json"];
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Installs what the boot file says is to be installed, once the agent is ready.
pub async fn install(boot: Boot, inbox: mpsc::Sender<Input>) {
    if boot.cni_bin.is_none() && boot.cni_conf.is_none() {
        return;
    }
    while ask(&inbox, Input::WaitingFor).await.is_none_or(|what| !what.is_empty()) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let boot = Arc::new(boot);
    // Not on the loop's thread: the folders may be on a slow disk.
    let put_all = || {
        let boot = boot.clone();
        tokio::task::spawn_blocking(move || put_all(&boot))
    };
    while let Err(error) = put_all().await.unwrap_or_else(|panic| Err(panic.into())) {
        error!("{error:#}; the runtime cannot attach pods until this works. Trying again");
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

/// Takes the configuration away again, then the plugin.
pub fn remove(boot: &Boot) -> Result<()> {
    let conflist = boot.cni_conf.as_ref().map(|folder| folder.join(CONFLIST));
    let plugin = boot.cni_bin.as_ref().map(|folder| folder.join(PLUGIN));
    for file in conflist.iter().chain(&plugin) {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", file.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The plugin first: a configuration without it fails every pod.
fn put_all(boot: &Boot) -> Result<()> {
    if let Some(folder) = &boot.cni_bin {
        let beside = std::env::current_exe().context("finding our own program")?.with_file_name(PLUGIN);
        let plugin = fs::read(&beside).with_context(|| format!("reading the plugin {}", beside.display()))?;
        put(&folder.join(PLUGIN), &plugin, 0o755).context("cniBin")?;
    }
    if let Some(folder) = &boot.cni_conf {
        let conflist = format!("{:#}\n", conflist(boot));
        put(&folder.join(CONFLIST), conflist.as_bytes(), 0o644).context("cniConf")?;
        for other in before_ours(folder)? {
            let other = other.display();
            warn!(
                "{other} sorts before {CONFLIST}, so the runtime uses that network; `mv {other} {other}.off` if it should not"
            );
        }
    }
    Ok(())
}

fn conflist(boot: &Boot) -> Value {
    let plugin = json!({
        "type": PLUGIN,
        "socket": boot.socket,
        "stateDir": boot.state_dir,
        "capabilities": {"portMappings": true, "ips": true, "mac": true, "bandwidth": true},
    });
    json!({"cniVersion": "1.1.0", "name": "tartan", "plugins": [plugin]})
}

/// Replaces a file unless it is just that already.
fn put(file: &Path, content: &[u8], mode: u32) -> Result<()> {
    let is_there = fs::read(file).is_ok_and(|there| there == content)
        && fs::metadata(file).is_ok_and(|meta| meta.permissions().mode() & 0o777 == mode);
    if is_there {
        return Ok(());
    }
    // Hidden, and with an ending that no runtime reads.
    let name = file.file_name().context("a file has a name")?.to_string_lossy();
    let new = file.with_file_name(format!(".{name}.new"));
    // On the disk before it takes the other's place: half a plugin after a power cut would fail every pod.
    let written = fs::write(&new, content)
        .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::File::open(&new)?.sync_all())
        .and_then(|()| fs::rename(&new, file));
    written.with_context(|| format!("installing {}", file.display()))?;
    info!("installed {}", file.display());
    Ok(())
}

/// What the runtime would rather read.
fn before_ours(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut before = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if *name < *CONFLIST && READ.iter().any(|ending| name.ends_with(ending)) {
            before.push(path);
        }
    }
    before.sort();
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_put_whole_and_others_stay() {
        let dir = std::env::temp_dir().join(format!("tartan-cni-files-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let boot: Boot = serde_json::from_value(json!({"store": "kubernetes:", "cniConf": dir})).unwrap();
        for name in ["00-other.conflist", "00-notes.txt", "10-later.conf"] {
            fs::write(dir.join(name), "{}").unwrap();
        }
        put_all(&boot).unwrap();
        let there: Value = serde_json::from_slice(&fs::read(dir.join(CONFLIST)).unwrap()).unwrap();
        assert_eq!(there["plugins"][0]["socket"], "/run/tartan/tartan.sock");
        assert_eq!(before_ours(&dir).unwrap(), [dir.join("00-other.conflist")]);

        let inode = |file: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(dir.join(file)).unwrap());
        let before = inode(CONFLIST);
        put_all(&boot).unwrap();
        assert_eq!(inode(CONFLIST), before, "what is there already is left alone");
        fs::write(dir.join(CONFLIST), "half").unwrap();
        put_all(&boot).unwrap();
        assert!(fs::read(dir.join(CONFLIST)).unwrap().starts_with(b"{"));

        remove(&boot).unwrap();
        remove(&boot).unwrap();
        let mut left: Vec<String> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["00-notes.txt", "00-other.conflist", "10-later.conf"]);
        fs::remove_dir_all(dir).unwrap();
    }
}
