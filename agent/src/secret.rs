//! The cluster's secret, as it is on this node: which one it is, and what is wrong with its file.
//!
//! Invariant: a file that is nothing to rely on changes nothing. The node goes on with the secret that it had.

use std::path::PathBuf;
use std::time::Duration;

use tartan_kernel::keys::Keys;
use tartan_kernel::secret::Secret;
use tartan_model::Condition;
use tokio::sync::mpsc;

use crate::run::Input;

/// Nobody tells of files.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The number of the secret, if there is one; or what is wrong with it.
pub type Found = Result<Option<u32>, String>;

/// What the file says now.
pub fn look(path: &std::path::Path) -> Found {
    Secret::read(path).map(|secret| secret.map(|secret| secret.id())).map_err(|error| error.to_string())
}

/// What the node goes by when it starts: where its file will not do, what its newest keys were made with.
pub fn at_first(found: &Found, keys: &Keys) -> Option<u32> {
    found.clone().unwrap_or_else(|_| keys.newest_secret().unwrap_or_default())
}

/// Tells what the file says, and what else it comes to say, for as long as the loop runs.
pub async fn keep(inbox: mpsc::Sender<Input>, path: PathBuf) {
    let mut told = None;
    loop {
        let found = look(&path);
        if told.as_ref() != Some(&found) {
            told = Some(found.clone());
            if inbox.send(Input::Secret(found)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Of a file that will not do.
pub fn condition(node: &str, why: &str) -> Condition {
    Condition {
        about: format!("Node/{node}"),
        field: "cluster-secret".into(),
        reason: "SecretRefused",
        message: format!("{node} goes on with the cluster's secret that it had: {why}"),
        fix: "put the same secret on every node, as docs/fabrics.md says, or take it away everywhere".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_file_that_will_not_do_leaves_the_secret_that_keys_were_made_with() {
        let state_dir = std::env::temp_dir().join(format!("tartan-agent-secret-{}", std::process::id()));
        let (path, keys) = (tartan_kernel::secret::path(&state_dir), Keys::of(&state_dir.join(crate::KEYS)));
        assert_eq!((look(&path), at_first(&look(&path), &keys)), (Ok(None), None));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let change = |byte: u8| {
            fs::write(&path, [byte; 44]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            look(&path).unwrap().unwrap()
        };
        // By name that of the secret before comes last, beside each of these.
        for pair in ["wireguard-10", "ipsec-ipv4-12"] {
            let before = format!("wireguard-9-psk{:08x}", change(b'x'));
            keys.make(&before).unwrap();
            let file = state_dir.join(crate::KEYS).join(format!("{before}.key"));
            let made = SystemTime::now() - Duration::from_secs(60);
            fs::File::options().write(true).open(file).unwrap().set_modified(made).unwrap();
            let id = change(b'y');
            assert_eq!(at_first(&look(&path), &keys), Some(id));
            let now = format!("{pair}-psk{id:08x}");
            keys.make(&now).unwrap();
            keys.make("wireguard-11").unwrap();
            fs::write(&path, "short").unwrap();
            assert_eq!(at_first(&look(&path), &keys), Some(id), "{now}");
            keys.remove(&now).unwrap();
        }
        let refused = look(&path);
        assert!(condition("n1", &refused.unwrap_err()).message.contains("it has 5 bytes"));
        fs::remove_dir_all(state_dir).unwrap();
    }
}
