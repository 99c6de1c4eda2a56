//! Container images made here and imported, because no registry can be asked: archives as `docker save` writes them.
//!
//! Invariant: an image is one layer of the files given; a pod whose image is here never pulls.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Programs;

/// What the kubelet runs to hold a pod's namespaces, by the name that containerd's configuration has.
const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// What pods of tests run: servers, clients and probes in one program.
pub(crate) const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// One image of an archive.
struct Image<'a> {
    tag: &'a str,
    entrypoint: &'a [&'a str],
    command: &'a [&'a str],
}

/// Every image that a node needs: agnhost, which can pause as well, and Tartan's as it is shipped.
pub(crate) fn archives(programs: &Programs, dir: &Path) -> Result<Vec<PathBuf>> {
    let agnhost = programs.find("agnhost")?;
    let images = [
        Image { tag: PAUSE, entrypoint: &["/agnhost", "pause"], command: &[] },
        Image { tag: AGNHOST, entrypoint: &["/agnhost"], command: &["pause"] },
    ];
    let agnhost = archive("agnhost", &[("agnhost", &agnhost)], &images, dir)?;
    Ok(vec![agnhost, programs.find("tartan.tar")?])
}

/// One layer with `files` at its root, and images that share it.
fn archive(name: &str, files: &[(&str, &Path)], images: &[Image<'_>], dir: &Path) -> Result<PathBuf> {
    let parts = dir.join(format!("{name}.parts"));
    let root = parts.join("root");
    fs::create_dir_all(&root)?;
    for (at, file) in files {
        fs::copy(file, root.join(at)).with_context(|| format!("copying {}", file.display()))?;
    }
    let layer = parts.join("layer.tar");
    tar(&layer, &root)?;
    let digest = run(Command::new("sha256sum").arg(&layer))?;
    let digest = digest.split(' ').next().context("sha256sum prints the sum first")?;
    let mut manifest = Vec::new();
    for (number, image) in images.iter().enumerate() {
        let config = format!("config{number}.json");
        fs::write(root.with_file_name(&config), image.config(digest).to_string())?;
        manifest.push(json!({"Config": config, "RepoTags": [image.tag], "Layers": ["layer.tar"]}));
    }
    fs::remove_dir_all(&root)?;
    fs::write(parts.join("manifest.json"), Value::from(manifest).to_string())?;
    let archive = dir.join(format!("{name}.tar"));
    tar(&archive, &parts)?;
    fs::remove_dir_all(&parts)?;
    Ok(archive)
}

impl Image<'_> {
    fn config(&self, digest: &str) -> Value {
        json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Cmd": self.command, "Env": ["PATH=/"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        })
    }
}

fn tar(archive: &Path, folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    run(Command::new("tar").arg("--create").arg("--file").arg(archive).arg("--directory").arg(folder).args(entries))?;
    Ok(())
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {}", command.get_program().display()))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
