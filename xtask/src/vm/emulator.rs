//! QEMU: this machine's if it is sound, else Debian's newest for this release, kept in the user's cache.
//!
//! QEMU 7.2 now and then has a processor go on with code that another one has replaced meanwhile. Linux replaces code as
//! it runs: whether there are hooks, or sockets that may use the last of the memory, is a jump or none. So a guest died of
//! `int3` in the midst of a test that makes a WireGuard device under load, once in some hours; a loop that does nothing
//! else kills it within a minute. One thread for all processors has no such fault and takes three times as long.

use super::apt::{Files, Suite};
use crate::command::{self, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Of the cache.
const FOLDER: &str = "qemu";
const PROGRAM: &str = "qemu-system-x86_64";
/// The first major version in which it was looked for in vain.
const SOUND: u32 = 10;
/// It finds its firmware beside itself; its libraries are this machine's, by the package of its own release.
const PACKAGES: &[&str] = &["qemu-system-x86", "qemu-system-data", "seabios"];
const FILES: Files =
    Files { these: &["*/bin/qemu-system-x86_64", "*/share/qemu/*", "*/share/seabios/*"], but_not: &[] };

/// What a kernel is started by, the last to be unpacked among it.
const FIRMWARE: &[&str] = &["qemu/linuxboot_dma.bin", "seabios/bios-256k.bin"];

/// The program to start.
///
/// # Errors
/// This machine's is too old, and there is no other to be had.
pub(super) fn program() -> Result<PathBuf> {
    if is_sound(Path::new(PROGRAM))? {
        return Ok(PROGRAM.into());
    }
    let whole = command::cache_dir()?.join("vm").join(FOLDER);
    if !whole.exists() {
        super::cached(FOLDER, |half| fetch(half).map(|()| FOLDER.to_owned()))?;
    }
    Ok(in_folder(&whole))
}

fn fetch(folder: &Path) -> Result<()> {
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = codename(&os).ok_or("/etc/os-release has no VERSION_CODENAME, so there is no telling where to get QEMU; install version 10 or later")?;
    let suite = format!("{name}-backports");
    println!("Fetching QEMU of Debian {suite} into {}.", folder.display());
    Suite::open(&suite, &folder.join("apt"))?.unpack(PACKAGES, &FILES, folder)?;
    for firmware in FIRMWARE {
        let file = folder.join("usr").join("share").join(firmware);
        if fs::metadata(&file).map_or(0, |file| file.len()) == 0 {
            return Err(format!("{} is missing or empty after unpacking; is the disk full?", file.display()).into());
        }
    }
    if is_sound(&in_folder(folder))? {
        return Ok(());
    }
    Err(format!(
        "QEMU of {suite} is older than {SOUND} as well, and would kill kernels under load; install a newer one"
    )
    .into())
}

fn in_folder(folder: &Path) -> PathBuf {
    folder.join("usr").join("bin").join(PROGRAM)
}

fn is_sound(program: &Path) -> Result<bool> {
    let said = command::capture(Command::new(program).arg("--version"))?;
    let major =
        major(&said).ok_or_else(|| format!("{} is no QEMU that says its version: {said}", program.display()))?;
    Ok(major >= SOUND)
}

/// `QEMU emulator version 7.2.22 (Debian …)`.
fn major(said: &str) -> Option<u32> {
    said.split_once("version ")?.1.split('.').next()?.parse().ok()
}

fn codename(os_release: &str) -> Option<&str> {
    os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_releases_are_read() {
        assert_eq!(major("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright"), Some(7));
        assert_eq!(major("QEMU emulator version 10.0.2"), Some(10));
        assert_eq!(major("command not found"), None);
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(codename("ID=other\n"), None);
    }
}
