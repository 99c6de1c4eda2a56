//! The plugin and its configuration, where the container runtime looks for them.
//!
//! Invariant: each file is replaced whole; the configuration is written only once the agent can answer for it, since the
//! kubelet takes the file for a network that works, and it stays when the agent ends; who deletes one under an agent that runs
//! has it back. Plugins that others have put into our file stay where they are. Files of others are never touched: one that
//! sorts before ours is what the runtime uses, so it is a condition, with the command that moves it away.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tartan_api::boot::Boot;
use tartan_model::Condition;
use tokio::sync::mpsc;
use tracing::{error, info};

use crate::http::ask;
use crate::run::Input;

/// Name of the plugin's program, beside the agent's and in the folder of plugins.
const PLUGIN: &str = "tartan-cni";
/// Before what others usually call theirs.
const CONFLIST: &str = "05-tartan.conflist";
/// The network's name in it.
pub(crate) const NETWORK: &str = "tartan";
/// A runtime takes the newest of the list that it knows. Those of before there was a list, containerd 1.6 and 1.7 among them, know the
/// first alone, and would have no pod with a result of the second.
const OLDEST: &str = "1.0.0";
const NEWEST: &str = "1.1.0";
/// Endings that runtimes read.
const READ: [&str; 3] = [".conf", ".conflist", ".json"];
const READY_YET: Duration = Duration::from_millis(100);
/// Nobody tells of files.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Keeps what the boot file says is to be installed, from when the agent is ready until the loop ends, and tells of others'
/// files that sort before ours.
pub async fn keep(boot: Boot, inbox: mpsc::Sender<Input>) {
    if boot.cni_bin.is_none() && boot.cni_conf.is_none() {
        return;
    }
    while ask(&inbox, Input::WaitingFor).await.is_none_or(|what| !what.is_empty()) {
        tokio::time::sleep(READY_YET).await;
    }
    let boot = Arc::new(boot);
    // Not on the loop's thread: the folders may be on a slow disk.
    let put_all = |again| {
        let boot = boot.clone();
        tokio::task::spawn_blocking(move || put_all(&boot, again))
    };
    let (mut told, mut complaint, mut done) = (Vec::new(), String::new(), false);
    loop {
        match put_all(done).await.unwrap_or_else(|panic| Err(panic.into())) {
            Ok(before) => {
                done = true;
                complaint.clear();
                if before != told && inbox.send(Input::OthersFirst(before.clone())).await.is_err() {
                    return;
                }
                told = before;
            }
            Err(error) if complaint == format!("{error:#}") => {}
            Err(error) => {
                complaint = format!("{error:#}");
                error!("{complaint}; the runtime cannot attach pods until this works. Trying again");
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Of a network of others that the runtime uses in place of ours.
pub fn condition(node: &str, file: &Path) -> Condition {
    let file = file.display();
    Condition {
        about: format!("NodeNetwork/{node}"),
        field: String::new(),
        reason: "OtherNetworkFirst",
        message: format!("{file} sorts before {CONFLIST}, so the runtime of {node} gives new pods that network"),
        fix: format!("mv {file} {file}.off"),
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

/// The plugin first: a configuration without it fails every pod. `again`: what is there in its place by now stays. Gives the
/// files that the runtime would rather read.
fn put_all(boot: &Boot, again: bool) -> Result<Vec<PathBuf>> {
    if let Some(folder) = boot.cni_bin.as_ref().filter(|folder| !again || !folder.join(PLUGIN).exists()) {
        let beside = std::env::current_exe().context("finding our own program")?.with_file_name(PLUGIN);
        let plugin = fs::read(&beside).with_context(|| format!("reading the plugin {}", beside.display()))?;
        put(&folder.join(PLUGIN), &plugin, 0o755).context("cniBin")?;
    }
    let Some(folder) = &boot.cni_conf else { return Ok(Vec::new()) };
    let file = folder.join(CONFLIST);
    let there = fs::read(&file).unwrap_or_default();
    put(&file, &beside_others(conflist(boot), &there), 0o644).context("cniConf")?;
    before_ours(folder)
}

fn conflist(boot: &Boot) -> Value {
    let plugin = json!({
        "type": PLUGIN,
        "socket": boot.socket,
        "stateDir": boot.state_dir,
        "capabilities": {"portMappings": true, "ips": true, "mac": true, "bandwidth": true},
    });
    json!({"cniVersion": OLDEST, "cniVersions": [OLDEST, NEWEST], "name": NETWORK, "plugins": [plugin]})
}

/// Our file with what others have put into it: istio-cni and the like add themselves to the one that the runtime reads. As
/// it is there where it says the same.
fn beside_others(ours: Value, there: &[u8]) -> Vec<u8> {
    let written = |list: &Value| format!("{list:#}\n").into_bytes();
    let Ok(found) = serde_json::from_slice::<Value>(there) else { return written(&ours) };
    let mut merged = found.clone();
    let plugins = merged["plugins"].as_array_mut();
    let Some(own) = plugins.and_then(|all| all.iter_mut().find(|it| it["type"] == PLUGIN)) else {
        return written(&ours);
    };
    *own = ours["plugins"][0].clone();
    for key in ["cniVersion", "cniVersions", "name"] {
        merged[key] = ours[key].clone();
    }
    if merged == found { there.to_vec() } else { written(&merged) }
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

/// What the runtime would rather read, and in which ours is not: istio-cni may keep a list of its own that has our plugin, and
/// Multus one that names our file or has what is in it.
fn before_ours(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut before = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_read = *name < *CONFLIST && READ.iter().any(|ending| name.ends_with(ending));
        if is_read && !fs::read(&path).is_ok_and(|list| has_ours(&list)) {
            before.push(path);
        }
    }
    before.sort();
    Ok(before)
}

/// Whether a configuration leads to our plugin, by itself or by our file.
pub fn has_ours(list: &[u8]) -> bool {
    fn leads_to_ours(value: &Value) -> bool {
        match value {
            Value::String(text) => text == PLUGIN || text.rsplit('/').next() == Some(CONFLIST),
            Value::Array(values) => values.iter().any(leads_to_ours),
            Value::Object(fields) => fields.values().any(leads_to_ours),
            _ => false,
        }
    }
    serde_json::from_slice(list).is_ok_and(|list| leads_to_ours(&list))
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
        assert_eq!(put_all(&boot, false).unwrap(), [dir.join("00-other.conflist")]);
        let there: Value = serde_json::from_slice(&fs::read(dir.join(CONFLIST)).unwrap()).unwrap();
        assert_eq!(there["plugins"][0]["socket"], "/run/tartan/tartan.sock");
        assert_eq!((&there["cniVersion"], &there["cniVersions"]), (&json!("1.0.0"), &json!(["1.0.0", "1.1.0"])));
        let lead_to_ours = [
            (
                "00-multus.conf",
                json!({"type": "multus-shim", "clusterNetwork": "/host/etc/cni/net.d/05-tartan.conflist"}),
            ),
            ("01-multus.conf", json!({"type": "multus", "delegates": [conflist(&boot)]})),
            ("02-istio-cni.conflist", conflist(&boot)),
        ];
        for (file, list) in &lead_to_ours {
            fs::write(dir.join(file), list.to_string()).unwrap();
        }
        assert_eq!(before_ours(&dir).unwrap(), [dir.join("00-other.conflist")]);
        lead_to_ours.iter().for_each(|(file, _)| fs::remove_file(dir.join(file)).unwrap());
        let said = condition("n1", Path::new("/etc/cni/net.d/00-x.conf"));
        assert_eq!(said.fix, "mv /etc/cni/net.d/00-x.conf /etc/cni/net.d/00-x.conf.off");

        let inode = |file: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(dir.join(file)).unwrap());
        let before = inode(CONFLIST);
        put_all(&boot, false).unwrap();
        assert_eq!(inode(CONFLIST), before, "what is there already is left alone");
        fs::write(dir.join(CONFLIST), "half").unwrap();
        put_all(&boot, false).unwrap();
        assert!(fs::read(dir.join(CONFLIST)).unwrap().starts_with(b"{"));

        // As the installer of istio-cni leaves it: its plugin behind the last, two blanks a level.
        let istio = json!({
            "type": "istio-cni", "name": "istio-cni", "plugin_log_level": "info", "ambient_enabled": false,
            "cni_agent_run_dir": "/var/run/istio-cni", "kubernetes": {"exclude_namespaces": ["kube-system"]},
        });
        let mut list = conflist(&boot);
        list["plugins"].as_array_mut().unwrap().push(istio.clone());
        fs::write(dir.join(CONFLIST), format!("{list:#}")).unwrap();
        let before = inode(CONFLIST);
        put_all(&boot, false).unwrap();
        assert_eq!(inode(CONFLIST), before, "nothing of ours is new");
        // By an agent of before there were two versions.
        let mut old = list.clone();
        old["cniVersion"] = "1.1.0".into();
        old.as_object_mut().unwrap().remove("cniVersions");
        fs::write(dir.join(CONFLIST), old.to_string()).unwrap();
        put_all(&boot, false).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&fs::read(dir.join(CONFLIST)).unwrap()).unwrap(), list);
        let moved = Boot { socket: "/run/other.sock".into(), ..boot.clone() };
        put_all(&moved, true).unwrap();
        let there: Value = serde_json::from_slice(&fs::read(dir.join(CONFLIST)).unwrap()).unwrap();
        assert_eq!(there["plugins"], json!([conflist(&moved)["plugins"][0], istio]));
        // Who took ours out wanted something else; the agent runs, so it is for ours.
        fs::write(dir.join(CONFLIST), json!({"plugins": [istio]}).to_string()).unwrap();
        put_all(&boot, false).unwrap();
        let there: Value = serde_json::from_slice(&fs::read(dir.join(CONFLIST)).unwrap()).unwrap();
        assert_eq!(there, conflist(&boot));

        remove(&boot).unwrap();
        remove(&boot).unwrap();
        let mut left: Vec<String> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["00-notes.txt", "00-other.conflist", "10-later.conf"]);
        fs::remove_dir_all(dir).unwrap();
    }
}
