//! What the node's sysctls were before Tartan changed them, kept on disk for `tartan uninstall`.
//!
//! Invariant: a value once noted is never overwritten: what a second agent finds is what the first one set.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tartan_netstate::{Key, LinkName, Netns};

const FILE: &str = "sysctls.json";

/// One sysctl as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    /// The link, for a sysctl of a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<LinkName>,
    name: String,
    value: String,
}

/// Adds what is not noted yet.
pub fn note(state_dir: &Path, found: &BTreeMap<Key, String>) -> Result<()> {
    let mut all = load(state_dir)?;
    let known = all.len();
    for (key, value) in found {
        all.entry(key.clone()).or_insert_with(|| value.clone());
    }
    if all.len() == known {
        return Ok(());
    }
    let noted: Vec<Noted> = all.iter().filter_map(|(key, value)| to_disk(key, value)).collect();
    let file = state_dir.join(FILE);
    let next = file.with_extension("json.next");
    let write = || -> std::io::Result<()> {
        let mut out = fs::File::create(&next)?;
        out.write_all(&serde_json::to_vec_pretty(&noted)?)?;
        out.sync_all()?;
        fs::rename(&next, &file)
    };
    write().with_context(|| format!("noting the node's own sysctls in {}", file.display()))
}

/// What is noted; nothing if no agent has run here.
pub fn load(state_dir: &Path) -> Result<BTreeMap<Key, String>> {
    let file = state_dir.join(FILE);
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    let noted: Vec<Noted> = serde_json::from_slice(&text).with_context(|| format!("reading {}", file.display()))?;
    Ok(noted.into_iter().map(|noted| (from_disk(&noted), noted.value)).collect())
}

fn to_disk(key: &Key, value: &str) -> Option<Noted> {
    let (link, name) = match key {
        Key::UplinkSysctl { link, name } => (Some(link.clone()), name),
        Key::Sysctl { ns: Netns::Host, name } => (None, name),
        _ => return None,
    };
    Some(Noted { link, name: name.to_string(), value: value.into() })
}

fn from_disk(noted: &Noted) -> Key {
    match &noted.link {
        Some(link) => Key::UplinkSysctl { link: link.clone(), name: noted.name.as_str().into() },
        None => Key::Sysctl { ns: Netns::Host, name: noted.name.as_str().into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_stays() {
        let dir = std::env::temp_dir().join(format!("tartan-found-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let forward = Key::Sysctl { ns: Netns::Host, name: "ipv4/ip_forward".into() };
        let uplink = Key::UplinkSysctl { link: LinkName::new("eth0").unwrap(), name: "ipv4/rp_filter".into() };
        note(&dir, &BTreeMap::from([(forward.clone(), "0".into())])).unwrap();
        note(&dir, &BTreeMap::from([(forward.clone(), "1".into()), (uplink.clone(), "1".into())])).unwrap();
        assert_eq!(load(&dir).unwrap(), BTreeMap::from([(forward, "0".into()), (uplink, "1".into())]));
        fs::remove_dir_all(&dir).unwrap();
    }
}
