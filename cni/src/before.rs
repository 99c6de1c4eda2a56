//! DEL of a container that another network has attached: Flannel, whose plugin leaves what it made of its configuration in a
//! file of the container's name, and `host-local`, which keeps a file for each address with the container in its first line.
//!
//! Invariant: of a container that Flannel does not know, nothing is deleted. The container's interface goes with its
//! namespace; Flannel's file goes last, so that a DEL that was cut off is done again.

use std::fs;
use std::io;
use std::path::Path;

const FLANNEL: &str = "/var/lib/cni/flannel";
const GIVEN: &str = "/var/lib/cni/networks";

/// Frees what the network before gave the container.
pub(crate) fn let_go(container: &str) -> io::Result<()> {
    let_go_in(Path::new(FLANNEL), Path::new(GIVEN), container)
}

fn let_go_in(flannel: &Path, given: &Path, container: &str) -> io::Result<()> {
    let note = flannel.join(container);
    if container.is_empty() || !note.is_file() {
        return Ok(());
    }
    // It may keep them elsewhere, or somebody has cleared them away: then there is nothing to free.
    let networks = match fs::read_dir(given) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        networks => Some(networks?),
    };
    for network in networks.into_iter().flatten() {
        let Ok(files) = fs::read_dir(network?.path()) else { continue };
        for file in files {
            let path = file?.path();
            // Most are other containers'; what is no text is nobody's address.
            if fs::read_to_string(&path).is_ok_and(|text| text.lines().next() == Some(container)) {
                fs::remove_file(path)?;
            }
        }
    }
    fs::remove_file(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_flannel_attached_is_let_go_of() {
        let dir = std::env::temp_dir().join(format!("tartan-before-{}", std::process::id()));
        let (flannel, given) = (dir.join("flannel"), dir.join("networks"));
        for folder in [&flannel, &given.join("cbr0"), &given.join("other")] {
            fs::create_dir_all(folder).expect("a folder is made");
        }
        let files = [
            ("cbr0/10.244.1.7", "c7\r\neth0"),
            ("cbr0/fd00::7", "c7\r\neth0"),
            ("cbr0/10.244.1.8", "c8\r\neth0"),
            ("cbr0/last_reserved_ip.0", "10.244.1.8"),
            ("other/10.9.0.9", "c9\r\neth0"),
        ];
        for (file, text) in files {
            fs::write(given.join(file), text).expect("a file is written");
        }
        fs::write(flannel.join("c7"), "{}").expect("a file is written");
        let there =
            || files.iter().filter(|(file, _)| given.join(file).exists()).map(|(file, _)| *file).collect::<Vec<_>>();
        for (container, left) in [("c9", 5), ("", 5), ("c7", 3), ("c7", 3)] {
            let_go_in(&flannel, &given, container).expect("it is let go of");
            assert_eq!(there().len(), left, "{container}: {:?}", there());
        }
        assert!(!flannel.join("c7").exists() && given.join("cbr0/10.244.1.8").exists());
        fs::write(flannel.join("c8"), "{}").expect("a file is written");
        let_go_in(&flannel, &dir.join("elsewhere"), "c8").expect("it has nothing there");
        assert!(!flannel.join("c8").exists());
        fs::remove_dir_all(dir).expect("the folder goes");
    }
}
