//! The release before this one, which clusters are upgraded from and downgraded to: its image under a name of its own, and
//! its manifest with that name.
//!
//! Invariant: it is built from its own commit, and kept under that commit's name.

use crate::{
    command::{self, Result},
    image,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Its commit. Until there is a release: the last one before agents cleared NetworkUnavailable.
const COMMIT: &str = "91367d0";
const NAME: &str = "tartan.dev/tartan:previous";
const MANIFEST: &str = "deploy/tartan.yaml";

/// Builds it if need be, below `cache`: the folder with tartan-previous.tar and tartan-previous.yaml.
///
/// # Errors
/// The commit is not in this clone (a shallow one), or does not build.
pub(crate) fn build(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join(format!("previous-{COMMIT}"));
    let archive = folder.join("tartan-previous.tar");
    if archive.exists() {
        return Ok(folder);
    }
    println!("Building Tartan as it was in {COMMIT} into {}; that takes minutes.", folder.display());
    let (tree, target) = (folder.join("tree"), folder.join("target"));
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree)?;
    let packed = folder.join("tree.tar");
    command::run(Command::new("git").arg("archive").arg("--output").arg(&packed).arg(COMMIT))?;
    command::run(Command::new("tar").arg("--extract").arg("--file").arg(&packed).arg("--directory").arg(&tree))?;
    let platform = image::Platform::of_this_machine()?;
    let programs = platform.programs_of(&tree, "demo", &target)?;
    let manifest = renamed(&fs::read_to_string(tree.join(MANIFEST))?)?;
    fs::write(folder.join("tartan-previous.yaml"), manifest)?;
    // Last: where it is, all is.
    let half = folder.join("half.tar");
    image::pack(&half, &[(platform, programs)], NAME)?;
    fs::rename(half, archive)?;
    fs::remove_file(packed)?;
    fs::remove_dir_all(tree)?;
    fs::remove_dir_all(target)?;
    Ok(folder)
}

/// The manifest with the name that its image has here.
fn renamed(manifest: &str) -> Result<String> {
    let line = |line: &str| match line.split_once("image: tartan.dev/tartan:") {
        Some((before, _)) => format!("{before}image: {NAME}\n"),
        None => format!("{line}\n"),
    };
    let renamed: String = manifest.lines().map(line).collect();
    if renamed.contains(NAME) {
        Ok(renamed)
    } else {
        Err(format!("{MANIFEST} of {COMMIT} names no image of ours").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_named_anew_and_nothing_else() {
        let manifest = "a: b\n  - image: tartan.dev/tartan:0.1.0\n    args: [agent]\n";
        let want = "a: b\n  - image: tartan.dev/tartan:previous\n    args: [agent]\n";
        assert_eq!(renamed(manifest).expect("it names one"), want);
        assert!(renamed("a: b\n").is_err());
    }
}
