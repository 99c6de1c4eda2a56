//! Debian's kernels, fetched as packages and kept in the user's cache, each in a folder named after what it is.
//!
//! A kernel that is there is not looked for again; delete its folder for a newer one.
//!
//! Invariant: a folder has its final name only when it is whole.

use super::apt::{Files, Suite};
use crate::command::{self, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A kernel that can be asked for.
pub(super) struct Known {
    /// What is typed.
    pub(super) name: &'static str,
    /// Where Debian keeps it.
    suite: &'static str,
}

/// The first is what runs unless another is named: the oldest we support.
pub(super) const KERNELS: &[Known] = &[
    Known { name: "bookworm", suite: "bookworm" },
    Known { name: "trixie", suite: "trixie" },
    Known { name: "backports", suite: "trixie-backports" },
];

/// A kernel that is there.
pub(super) struct Kernel {
    pub(super) name: String,
    /// What `uname -r` says in it.
    pub(super) release: String,
    /// `vmlinuz` and `lib/modules/RELEASE`.
    pub(super) folder: PathBuf,
}

/// What a network needs; without, a kernel is 400 MB of drivers.
const FILES: Files = Files {
    these: &[
        "*/boot/vmlinuz-*",
        "*/lib/modules/*/vmlinuz",
        "*/modules.builtin*",
        "*/modules.order",
        "*/kernel/arch/*",
        "*/kernel/crypto/*",
        "*/kernel/drivers/net/*",
        "*/kernel/drivers/virtio/*",
        "*/kernel/fs/9p/*",
        "*/kernel/fs/fscache/*",
        "*/kernel/fs/netfs/*",
        "*/kernel/fs/overlayfs/*",
        "*/kernel/lib/*",
        "*/kernel/net/*",
    ],
    but_not: &["*/drivers/net/ethernet/*", "*/drivers/net/wireless/*", "*/kernel/net/bluetooth/*"],
};

/// # Errors
/// There is none of that name; the error lists those there are.
pub(super) fn find(name: &str) -> Result<&'static Known> {
    KERNELS.iter().find(|kernel| kernel.name == name).ok_or_else(|| {
        let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
        format!("`{name}` is not a kernel; there are: {}", names.join(" ")).into()
    })
}

impl Kernel {
    /// The kernel of that name, from the cache if it is there.
    ///
    /// # Errors
    /// apt has no mirror of Debian, or cannot get the package from it.
    pub(super) fn fetch(name: &str) -> Result<Kernel> {
        let cache = command::cache_dir()?.join("vm");
        fs::create_dir_all(&cache)?;
        for entry in fs::read_dir(&cache)? {
            let folder = entry?.path();
            if let Some(kernel) = Kernel::open(&folder).ok().filter(|kernel| kernel.name == name) {
                return Ok(kernel);
            }
        }
        let known = find(name)?;
        Kernel::open(&super::cached(name, |half| Ok(format!("{name}-{}", make(known, half)?)))?)
    }

    /// The kernel in a folder of the cache.
    ///
    /// # Errors
    /// The folder is not called as one, which may be because it is not whole.
    pub(super) fn open(folder: &Path) -> Result<Kernel> {
        let called = folder.file_name().unwrap_or_default().to_string_lossy();
        match called.split_once('-').filter(|(name, _)| find(name).is_ok()) {
            Some((name, release)) => {
                Ok(Kernel { name: name.into(), release: release.into(), folder: folder.to_path_buf() })
            }
            None => Err(format!("{} is no kernel's folder", folder.display()).into()),
        }
    }

    /// What must be loaded, in that order, before these modules work; they come last.
    ///
    /// # Errors
    /// The kernel has no such module.
    pub(super) fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for name in names {
            let mut modprobe = Command::new("/sbin/modprobe");
            modprobe.arg("-d").arg(&self.folder).args(["-S", &self.release, "--show-depends", name]);
            for line in command::capture(&mut modprobe)?.lines() {
                let file = line.trim().strip_prefix("insmod ").map(PathBuf::from);
                files.extend(file.filter(|file| !files.contains(file)));
            }
        }
        Ok(files)
    }
}

/// Fetches a kernel into a folder; gives its release.
fn make(kernel: &Known, folder: &Path) -> Result<String> {
    println!("Fetching the kernel of Debian {} into {}.", kernel.suite, folder.display());
    let suite = Suite::open(kernel.suite, &folder.join("apt"))?;
    let newest = suite.show("linux-image-amd64")?;
    let package =
        image_of(&newest).ok_or_else(|| format!("linux-image-amd64 of {} depends on no image", kernel.suite))?;
    let release = package.trim_start_matches("linux-image-");
    let image = suite.show(package)?;
    suite.unpack(&[vec![package], parts_of(&image, release)].concat(), &FILES, folder)?;
    settle(folder)?;
    command::run(Command::new("/sbin/depmod").arg("-b").arg(folder).arg(release))?;
    Ok(release.to_owned())
}

/// `linux-image-6.1.0-56-amd64` of what the package says of itself that always depends on the newest.
fn image_of(package: &str) -> Option<&str> {
    let depends = package.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    depends.split([' ', ',']).find(|word| word.starts_with("linux-image-"))
}

/// Packages of the same release that newer images consist of.
fn parts_of<'a>(image: &'a str, release: &str) -> Vec<&'a str> {
    let depends = image.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or("");
    depends.split([' ', ',']).filter(|word| word.ends_with(&format!("-{release}"))).collect()
}

/// Puts things where they are looked for. What is missing is noticed here.
fn settle(folder: &Path) -> Result<()> {
    if !folder.join("lib").exists() {
        fs::rename(folder.join("usr").join("lib"), folder.join("lib"))?;
    }
    let mut settle = Command::new("sh");
    // A first root has no program that unpacks modules.
    settle.args(["-c", "mv $(ls \"$0\"/boot/vmlinuz-* \"$0\"/lib/modules/*/vmlinuz 2>/dev/null) \"$0\"/vmlinuz && ls \"$0\"/lib/modules/*/kernel/net >/dev/null && find \"$0\" -name '*.ko.xz' -exec unxz {} +"]);
    command::run(settle.arg(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_image_is_what_the_package_depends_on() {
        let check = |text: &str, want: Option<&str>| assert_eq!(image_of(text), want, "{text}");
        check("Package: x\nDepends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)\n", Some("linux-image-6.1.0-56-amd64"));
        check("Depends: kmod, linux-image-6.12.1+deb13-amd64\n", Some("linux-image-6.12.1+deb13-amd64"));
        check("Package: x\n", None);
        let split =
            "Depends: dracut | x, linux-base-7.3.4+deb13-amd64 (= 7.3), linux-modules-7.3.4+deb13-amd64 (= 7.3)\n";
        let parts = ["linux-base-7.3.4+deb13-amd64", "linux-modules-7.3.4+deb13-amd64"];
        assert_eq!(parts_of(split, "7.3.4+deb13-amd64"), parts);
        assert!(parts_of("Depends: kmod, linux-base\n", "6.1.0-56-amd64").is_empty());
    }

    #[test]
    fn a_folder_says_which_kernel_it_is() {
        let kernel = Kernel::open(Path::new("/c/bookworm-6.1.0-56-amd64")).expect("is one");
        assert_eq!((kernel.name.as_str(), kernel.release.as_str()), ("bookworm", "6.1.0-56-amd64"));
        for other in ["/c/.bookworm-77", "/c/sid-7", "/c/bookworm"] {
            assert!(Kernel::open(Path::new(other)).is_err(), "{other}");
        }
    }
}
