//! `cargo xtask image`: the container image, made without a container engine: an OCI image layout in one archive, as
//! `ctr images import`, `podman load` and `skopeo copy oci-archive:…` take it.
//!
//! Invariant: from scratch: one layer with the two static programs and nothing else. Same programs, same bytes.

use crate::{
    command::{self, Result},
    packages::{self, Lane},
};
use std::{
    env::consts,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// As `deploy/tartan.yaml` names it.
pub(crate) const NAME: &str = concat!("tartan.dev/tartan:", env!("CARGO_PKG_VERSION"));

const PROGRAMS: [&str; 2] = ["tartan", "tartan-cni"];

/// An architecture that images are made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Platform {
    /// As OCI names it.
    architecture: &'static str,
    /// As rustc names it; `std::env::consts::ARCH` begins its target.
    target: &'static str,
    /// What compiles C for it where it is not this machine's own: Debian's gcc-aarch64-linux-gnu and
    /// libc6-dev-arm64-cross, and the like.
    cross: &'static str,
}

const PLATFORMS: [Platform; 2] = [
    Platform { architecture: "amd64", target: "x86_64-unknown-linux-musl", cross: "x86_64-linux-gnu-gcc" },
    Platform { architecture: "arm64", target: "aarch64-unknown-linux-musl", cross: "aarch64-linux-gnu-gcc" },
];

/// A piece of an image, by its content.
struct Blob {
    /// Hexadecimal SHA-256.
    digest: String,
    /// Bytes.
    size: u64,
}

/// Carries out `image [ARCH…]`.
///
/// # Errors
/// An architecture that is not known, a package that cannot be installed, a build that fails.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    let platforms = match args {
        [] => vec![Platform::of_this_machine()?],
        some => some.iter().map(|name| Platform::named(name)).collect::<Result<Vec<_>>>()?,
    };
    packages::ensure(&[Lane::Build])?;
    let archive = build(&platforms, "release")?;
    println!("{} holds {NAME}, {:.1} MiB", archive.display(), mib(&archive)?);
    Ok(())
}

/// Size of an archive, MiB.
pub(crate) fn mib(archive: &Path) -> Result<f64> {
    Ok(fs::metadata(archive)?.len() as f64 / f64::from(1 << 20))
}

/// Builds the programs in a cargo profile and puts them into an archive; gives its path.
///
/// # Errors
/// A program does not build, or a tool that makes the archive fails.
pub(crate) fn build(platforms: &[Platform], profile: &str) -> Result<PathBuf> {
    let programs = |platform: &Platform| platform.programs(profile);
    let programs = platforms.iter().map(programs).collect::<Result<Vec<_>>>()?;
    let archive = command::target_dir().join("image").join(profile).join("tartan.tar");
    pack(&archive, &platforms.iter().copied().zip(programs).collect::<Vec<_>>(), NAME)?;
    Ok(archive)
}

/// Puts programs, each platform's in a folder, into an archive.
///
/// # Errors
/// A tool that makes the archive fails.
pub(crate) fn pack(archive: &Path, images: &[(Platform, PathBuf)], name: &str) -> Result<()> {
    let layout = archive.with_extension("layout");
    let _ = fs::remove_dir_all(&layout);
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    write_layout(&layout, images, name)?;
    tar(archive, &layout)?;
    Ok(fs::remove_dir_all(&layout)?)
}

fn write_layout(layout: &Path, images: &[(Platform, PathBuf)], name: &str) -> Result<()> {
    let mut manifests = Vec::new();
    for (platform, programs) in images {
        let manifest = write_image(layout, platform, programs)?;
        let of = format!(r#","platform":{{"architecture":"{}","os":"linux"}}"#, platform.architecture);
        manifests.push(manifest.descriptor("application/vnd.oci.image.manifest.v1+json", &of));
    }
    let index = |manifests: &str| format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{manifests}]}}"#);
    let all = write_blob(layout, index(&manifests.join(",")).as_bytes())?;
    let named = format!(
        r#","annotations":{{"io.containerd.image.name":"{name}","org.opencontainers.image.ref.name":"{name}"}}"#
    );
    fs::write(layout.join("index.json"), index(&all.descriptor(INDEX, &named)))?;
    Ok(fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?)
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Layer, configuration and manifest for one platform.
fn write_image(layout: &Path, platform: &Platform, programs: &Path) -> Result<Blob> {
    let layer = layout.with_extension("layer");
    let mut pack = reproducible_tar(&layer, programs);
    command::capture(pack.args(["--mode", "0755"]).args(PROGRAMS))?;
    let diff_id = sha256(&layer)?;
    command::capture(Command::new("gzip").args(["--force", "--no-name", "--best"]).arg(&layer))?;
    let packed = layer.with_extension("layer.gz");
    let layer = write_blob(layout, &fs::read(&packed)?)?;
    fs::remove_file(packed)?;
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Entrypoint":["/tartan"],"Env":["PATH=/"],"Labels":{{"org.opencontainers.image.title":"tartan","org.opencontainers.image.version":"{}","org.opencontainers.image.licenses":"Apache-2.0"}}}},"rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}}}}"#,
        platform.architecture,
        env!("CARGO_PKG_VERSION"),
    );
    let config = write_blob(layout, config.as_bytes())?;
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        config.descriptor("application/vnd.oci.image.config.v1+json", ""),
        layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip", ""),
    );
    write_blob(layout, manifest.as_bytes())
}

fn write_blob(layout: &Path, content: &[u8]) -> Result<Blob> {
    let half = layout.join("blobs/half");
    fs::write(&half, content)?;
    let digest = sha256(&half)?;
    fs::rename(half, layout.join("blobs/sha256").join(&digest))?;
    Ok(Blob { digest, size: content.len() as u64 })
}

fn sha256(file: &Path) -> Result<String> {
    let said = command::capture(Command::new("sha256sum").arg(file))?;
    Ok(said.split(' ').next().unwrap_or_default().to_owned())
}

/// Packs all of a folder.
fn tar(archive: &Path, folder: &Path) -> Result<()> {
    let mut names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    names.sort();
    command::capture(reproducible_tar(archive, folder).args(names)).map(drop)
}

/// Nothing of when and by whom it was packed is in it.
fn reproducible_tar(archive: &Path, folder: &Path) -> Command {
    let mut command = Command::new("tar");
    command.args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]);
    command.args(["--format=ustar", "--file"]).arg(archive).arg("--directory").arg(folder);
    command
}

// === impl Platform ===

impl Platform {
    /// The one we run on.
    ///
    /// # Errors
    /// Nobody tried it yet.
    pub(crate) fn of_this_machine() -> Result<Platform> {
        let own = PLATFORMS.into_iter().find(|platform| platform.is_of_this_machine());
        own.ok_or_else(|| format!("no image for {} yet; there are: {}", consts::ARCH, known()).into())
    }

    fn named(name: &str) -> Result<Platform> {
        let found = PLATFORMS.into_iter().find(|platform| platform.architecture == name);
        found.ok_or_else(|| format!("image: no architecture `{name}`; there are: {}", known()).into())
    }

    fn is_of_this_machine(&self) -> bool {
        self.target.split('-').next() == Some(consts::ARCH)
    }

    /// Builds the programs; gives the folder they are in.
    pub(crate) fn programs(&self, profile: &str) -> Result<PathBuf> {
        self.programs_of(command::root(), profile, &command::target_dir())
    }

    /// The same of another checkout, into a folder that cargo has for itself.
    pub(crate) fn programs_of(&self, checkout: &Path, profile: &str, target_dir: &Path) -> Result<PathBuf> {
        let mut build = command::cargo(&["build", "--profile", profile, "--target", self.target]);
        build.args(["-p", "tartan-cli", "-p", "tartan-cni", "--target-dir"]).arg(target_dir).current_dir(checkout);
        if !self.is_of_this_machine() {
            let variable = self.target.replace('-', "_");
            build.env(format!("CC_{variable}"), self.cross);
            build.env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), "rust-lld");
        }
        command::run(&mut build).map_err(|error| {
            format!("{error}\nDoes it lack `rustup target add {}`, or the packages of {}?", self.target, self.cross)
        })?;
        Ok(target_dir.join(self.target).join(profile))
    }
}

fn known() -> String {
    PLATFORMS.iter().fold(String::new(), |mut text, platform| {
        let _ = write!(text, "{}{}", if text.is_empty() { "" } else { " " }, platform.architecture);
        text
    })
}

// === impl Blob ===

impl Blob {
    fn descriptor(&self, media_type: &str, more: &str) -> String {
        let Blob { digest, size } = self;
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{digest}","size":{size}{more}}}"#)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_programs_make_the_same_image() {
        let folder = std::env::temp_dir().join(format!("tartan-image-{}", std::process::id()));
        let image = |name: &str| {
            let (programs, layout) = (folder.join("programs"), folder.join(name));
            fs::create_dir_all(layout.join("blobs/sha256")).expect("a temporary folder");
            fs::create_dir_all(&programs).expect("a temporary folder");
            PROGRAMS.iter().for_each(|program| fs::write(programs.join(program), program).expect("writable"));
            write_layout(&layout, &PLATFORMS.map(|platform| (platform, programs.clone())), NAME).expect("tar, gzip");
            let archive = layout.with_extension("tar");
            tar(&archive, &layout).expect("tar");
            fs::read(archive).expect("made")
        };
        let (one, other) = (image("one"), image("other"));
        fs::remove_dir_all(&folder).expect("made above");
        assert!(one == other, "two archives of the same programs differ");
        let text = String::from_utf8_lossy(&one);
        for part in [NAME, r#""architecture":"arm64","os":"linux""#, r#""architecture":"amd64","os":"linux""#] {
            assert!(text.contains(part), "{part} is not in the archive");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        let error = run(&["riscv"]).expect_err("nobody tried").to_string();
        assert_eq!(error, "image: no architecture `riscv`; there are: amd64 arm64");
    }
}
