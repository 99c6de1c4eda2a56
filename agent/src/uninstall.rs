//! `tartan uninstall`: takes back exactly what is ours, and nothing else.
//!
//! Works without an agent and whatever state it left: what is ours is what carries our claims, read from the kernel.
//! Sysctls get the value back that the agent found when it first changed them; those of links that are gone are gone with them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use anyhow::{Context, Result};
use tartan_kernel::{Failure, Kernel, Scope};
use tartan_netstate::{Change, Key, Object, Owner, State, Step, diff};

use crate::sysctls_before;

/// What was taken back.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Report {
    /// Kernel objects removed.
    pub removed: usize,
    /// Sysctls given back.
    pub restored: usize,
    /// What the kernel would not let go of, with its reason.
    pub failures: Vec<String>,
}

/// Takes back everything of ours in this network namespace, then the agent's state.
pub fn uninstall(kernel: &mut dyn Kernel, state_dir: &Path) -> Result<Report> {
    let mut ours = State::new();
    for scope in Scope::of_node() {
        let read = kernel.read(&scope).with_context(|| format!("reading {scope:?}"))?;
        ours.replace(&State::new(), &read);
    }
    let removal = diff(&ours, &State::new(), |_| true);
    let found = sysctls_before::load(state_dir)?;
    let restoration = give_back(&found);
    let mut failures = kernel.apply(&removal);
    let (gone, refused): (Vec<_>, Vec<_>) = kernel.apply(&restoration).into_iter().partition(Failure::is_absence);
    failures.extend(refused);
    if failures.is_empty() {
        remove(state_dir).with_context(|| format!("removing {}", state_dir.display()))?;
    }
    Ok(Report {
        removed: removal.steps.len(),
        restored: restoration.steps.len() - gone.len(),
        failures: failures.iter().map(|failure| format!("{}: {}", failure.key, failure.error)).collect(),
    })
}

/// A folder that is mounted stays, empty: as it does in a container.
fn remove(dir: &Path) -> io::Result<()> {
    let is_empty = || fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound && !is_empty() => Err(error),
        _ => Ok(()),
    }
}

fn give_back(found: &BTreeMap<Key, String>) -> Change {
    let step = |(key, value): (&Key, &String)| {
        let object = Object::Sysctl(value.as_str().into());
        Step::replace(key.clone(), object.clone(), object, Owner::Node)
    };
    // Last changed first: forwarding goes before the uplink's accept_ra.
    Change { steps: found.iter().rev().map(step).collect() }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use tartan_kernel::fake::Fake;
    use tartan_netstate::LinkName;

    use super::*;

    #[test]
    fn what_was_set_on_a_link_that_is_gone_keeps_nothing_back() {
        let dir = std::env::temp_dir().join(format!("tartan-uninstall-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let noted = r#"[{"link": "flannel.1", "name": "ipv6/accept_ra", "value": "1"}, {"name": "ipv4/ip_forward", "value": "0"}]"#;
        fs::write(dir.join("sysctls.json"), noted).unwrap();
        let mut kernel = Fake::new();
        let key = Key::UplinkSysctl { link: LinkName::new("flannel.1").unwrap(), name: "ipv6/accept_ra".into() };
        kernel.fail(key.clone(), Some(Errno::EACCES));
        let refused = uninstall(&mut kernel, &dir).unwrap();
        assert!(refused.failures.len() == 1 && dir.exists(), "{refused:?}");
        kernel.fail(key, Some(Errno::ENOENT));
        let report = uninstall(&mut kernel, &dir).unwrap();
        assert_eq!((report.restored, report.failures), (1, Vec::new()));
        assert!(!dir.exists());
    }
}
