//! What the node's sysctls were before Tartan changed them, kept on disk for `tartan uninstall`.
//!
//! Invariants: a value is on the disk before it is changed, and one that cannot be put there is not changed; a value once
//! noted is never overwritten: what a second agent finds is what the first one set.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tartan_kernel::{Failure, Kernel, KernelError, Scope, Waker};
use tartan_model::{EncryptionState, Features, Host};
use tartan_netstate::{Change, Key, LinkName, Netns, Object, Op, PodNetns, State, Step};

const FILE: &str = "sysctls.json";

/// A kernel whose own sysctls are noted before they are changed for the first time.
pub struct Noting {
    kernel: Box<dyn Kernel>,
    state_dir: PathBuf,
}

/// One sysctl as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    /// The link, for a sysctl of a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<LinkName>,
    name: String,
    value: String,
}

// === impl Noting ===

impl Noting {
    /// Notes in this directory.
    pub fn new(kernel: Box<dyn Kernel>, state_dir: &Path) -> Noting {
        Noting { kernel, state_dir: state_dir.to_owned() }
    }
}

impl Kernel for Noting {
    fn features(&mut self) -> Features {
        self.kernel.features()
    }

    fn subscribe(&mut self, wake: Waker) -> Result<(), KernelError> {
        self.kernel.subscribe(wake)
    }

    fn read(&mut self, scope: &Scope) -> Result<State, KernelError> {
        self.kernel.read(scope)
    }

    fn host(&mut self) -> Result<Host, KernelError> {
        self.kernel.host()
    }

    fn encryption(&mut self) -> Result<EncryptionState, KernelError> {
        self.kernel.encryption()
    }

    fn apply(&mut self, change: &Change) -> Vec<Failure> {
        let found: BTreeMap<Key, String> = change.steps.iter().filter_map(|step| first_value(step.op())).collect();
        let Err(error) = note(&self.state_dir, &found) else { return self.kernel.apply(change) };
        let (held_back, rest): (Vec<_>, Vec<_>) =
            change.steps.iter().cloned().partition(|step| first_value(step.op()).is_some());
        let failure = |step: &Step| Failure::of(step, KernelError::NotNoted(format!("{error:#}")));
        let mut failures: Vec<Failure> = held_back.iter().map(failure).collect();
        failures.extend(self.kernel.apply(&Change { steps: rest }));
        failures
    }

    fn wait_for_carrier(&mut self, link: &LinkName) {
        self.kernel.wait_for_carrier(link);
    }

    fn bury(&mut self) {
        self.kernel.bury();
    }

    fn lend(&mut self, ns: &PodNetns, fd: OwnedFd) {
        self.kernel.lend(ns, fd);
    }

    fn give_back(&mut self, ns: &PodNetns) {
        self.kernel.give_back(ns);
    }
}

/// What a step finds, if it changes a sysctl that was there before us.
fn first_value(op: Op<'_>) -> Option<(Key, String)> {
    match op {
        Op::Replace {
            key: key @ (Key::Sysctl { ns: Netns::Host, .. } | Key::UplinkSysctl { .. }),
            old: Object::Sysctl(old),
            ..
        } => Some((key.clone(), old.to_string())),
        _ => None,
    }
}

/// Adds what is not noted yet.
fn note(state_dir: &Path, found: &BTreeMap<Key, String>) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
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
    use tartan_netstate::Owner;

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

    fn forward(old: &str, new: &str) -> Change {
        let key = Key::Sysctl { ns: Netns::Host, name: "ipv4/ip_forward".into() };
        let [old, new] = [old, new].map(|value| Object::Sysctl(value.into()));
        Change { steps: vec![Step::replace(key, old, new, Owner::Node)] }
    }

    /// A kernel that is killed at the first change, of which it is not known how far it came.
    struct Killed(Box<dyn Fn() + Send>);

    impl Kernel for Killed {
        fn features(&mut self) -> Features {
            Features::default()
        }

        fn subscribe(&mut self, _: Waker) -> Result<(), KernelError> {
            Ok(())
        }

        fn read(&mut self, _: &Scope) -> Result<State, KernelError> {
            Ok(State::new())
        }

        fn host(&mut self) -> Result<Host, KernelError> {
            Ok(Host::default())
        }

        fn encryption(&mut self) -> Result<EncryptionState, KernelError> {
            Ok(EncryptionState::default())
        }

        fn apply(&mut self, _: &Change) -> Vec<Failure> {
            (self.0)();
            panic!("killed")
        }

        fn wait_for_carrier(&mut self, _: &LinkName) {}

        fn bury(&mut self) {}

        fn lend(&mut self, _: &PodNetns, _: OwnedFd) {}

        fn give_back(&mut self, _: &PodNetns) {}
    }

    #[test]
    fn a_value_is_on_the_disk_before_the_kernel_is_asked_to_change_it() {
        let dir = std::env::temp_dir().join(format!("tartan-noting-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let noted = dir.clone();
        let on_disk = move || assert_eq!(load(&noted).unwrap().into_values().collect::<Vec<_>>(), ["0"]);
        let mut kernel = Noting::new(Box::new(Killed(Box::new(on_disk))), &dir);
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| kernel.apply(&forward("0", "1"))));
        assert_eq!(killed.unwrap_err().downcast_ref(), Some(&"killed"));
        // The next life finds what the first one may have set.
        let mut fake = tartan_kernel::fake::Fake::new();
        assert!(Noting::new(Box::new(fake.clone()), &dir).apply(&forward("1", "1")).is_empty());
        assert_eq!(load(&dir).unwrap().into_values().collect::<Vec<_>>(), ["0"]);
        let report = crate::uninstall::uninstall(&mut fake, &dir).unwrap();
        assert_eq!((report.restored, report.failures), (1, Vec::new()));
        let (key, _) = first_value(forward("0", "1").steps[0].op()).unwrap();
        assert!(fake.state().holds(&key, &Object::Sysctl("0".into())));
    }

    #[test]
    fn what_cannot_be_noted_is_not_changed_and_holds_nothing_else_up() {
        let dir = std::env::temp_dir().join(format!("tartan-unnoted-{}", std::process::id()));
        let fake = tartan_kernel::fake::Fake::new();
        let mut change = forward("0", "1");
        change.steps.push(Step::create(Key::NftTable, Object::NftTable, Owner::Node));
        // There is no such directory.
        let failures = Noting::new(Box::new(fake.clone()), &dir).apply(&change);
        assert_eq!(failures.len(), 1);
        let said = failures[0].error.to_string();
        assert!(said.starts_with("its value from before could not be put on record"), "{said}");
        assert!(fake.state().get(&Key::NftTable).is_some() && fake.state().len() == 1);
    }
}
