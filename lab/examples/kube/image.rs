//! Container images made here and imported, because no registry can be asked: archives as `docker save` writes them.
//!
//! Invariant: an image is one layer of the files given; a pod whose image is here never pulls.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::Wants;
use crate::pki::{Pki, Subject};
use crate::{MACHINE_PATH, Programs, suite, tools};

/// What the kubelet runs to hold a pod's namespaces, by the name that containerd's configuration has.
const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// What pods of tests run: servers, clients and probes in one program.
pub(crate) const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// Those of the images that Kubernetes' own tests name which the network's run: all are agnhost and tools.
const OF_TESTS: [&str; 5] = ["agnhost", "glibc-dns-testing", "jessie-dnsutils", "busybox", "pause"];
/// As `coredns.yaml` names it.
const COREDNS: &str = "tartan.dev/lab/coredns:1";

/// Flannel's daemon, as `flannel.rs` names it.
pub(crate) const FLANNEL: &str = "tartan.dev/lab/flannel:1";

/// One image of an archive.
struct Image {
    tag: String,
    entrypoint: &'static [&'static str],
    command: &'static [&'static str],
}

const fn image(tag: String, entrypoint: &'static [&'static str], command: &'static [&'static str]) -> Image {
    Image { tag, entrypoint, command }
}

/// Every image that a node needs: agnhost, which can pause as well, Tartan's as it is shipped, and what is wanted.
pub(crate) fn archives(programs: &Programs, wants: Wants, pki: &Pki, dir: &Path) -> Result<Vec<PathBuf>> {
    let agnhost = programs.find("agnhost")?;
    let mut images =
        vec![image(PAUSE.into(), &["/agnhost", "pause"], &[]), image(AGNHOST.into(), &["/agnhost"], &["pause"])];
    if wants.tools {
        images.extend(of_tests(&run(Command::new(programs.find(suite::PROGRAM)?).arg("--list-images"))?));
    }
    let content = |root: &Path| {
        copy(&agnhost, &root.join("agnhost"))?;
        if wants.tools { upstream_content(programs, pki, root) } else { Ok(()) }
    };
    let mut archives = vec![archive("agnhost", dir, &images, content)?, programs.find("tartan.tar")?];
    if wants.previous {
        archives.push(programs.find("tartan-previous.tar")?);
    }
    if wants.proxy.is_some() {
        let coredns = programs.find("coredns")?;
        let images = [image(COREDNS.into(), &["/coredns"], &[])];
        archives.push(archive("coredns", dir, &images, |root| copy(&coredns, &root.join("coredns")))?);
    }
    if wants.flannel {
        let flanneld = programs.find("flannel")?;
        let images = [image(FLANNEL.into(), &["/flannel"], &[])];
        let content = |root: &Path| {
            copy(&flanneld, &root.join("flannel"))?;
            tools::copy_iptables(root)
        };
        archives.push(archive("flannel", dir, &images, content)?);
    }
    Ok(archives)
}

/// The images to be made among those named, a line each.
fn of_tests(named: &str) -> Vec<Image> {
    let wanted = |tag: &&str| {
        let name = tag.rsplit('/').next().and_then(|name| name.split(':').next());
        name.is_some_and(|name| OF_TESTS.contains(&name)) && ![AGNHOST, PAUSE].contains(tag)
    };
    let image_of = |tag: &str| match tag {
        // Each Kubernetes has another one.
        _ if tag.contains("/pause:") => image(tag.into(), &["/agnhost", "pause"], &[]),
        _ if tag.contains("/agnhost:") => image(tag.into(), &["/agnhost"], &["pause"]),
        _ => image(tag.into(), &[], &["/bin/sh"]),
    };
    named.lines().map(str::trim).filter(wanted).map(image_of).collect()
}

/// What else upstream has in agnhost's image.
fn upstream_content(programs: &Programs, pki: &Pki, root: &Path) -> Result<()> {
    tools::copy(root)?;
    symlink("agnhost", root.join("agnhost-2"))?;
    copy(&programs.find("coredns")?, &root.join("coredns"))?;
    let served = Subject { file: "localhost", common_name: "localhost", organisation: "tests", serves: &[] };
    pki.sign(&served)?;
    copy(&pki.cert("localhost"), &root.join("localhost.crt"))?;
    copy(&pki.key("localhost"), &root.join("localhost.key"))?;
    ["tmp", "uploads"].into_iter().try_for_each(|folder| Ok(fs::create_dir_all(root.join(folder))?))
}

fn copy(file: &Path, to: &Path) -> Result<()> {
    fs::copy(file, to).with_context(|| format!("copying {}", file.display())).map(drop)
}

/// One layer, whose root `content` fills, and images that share it.
fn archive(name: &str, dir: &Path, images: &[Image], content: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let parts = dir.join(format!("{name}.parts"));
    let root = parts.join("root");
    fs::create_dir_all(&root)?;
    content(&root)?;
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

impl Image {
    fn config(&self, digest: &str) -> Value {
        json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Cmd": self.command, "Env": [format!("PATH=/:{}", MACHINE_PATH.join(":"))]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        })
    }
}

fn tar(archive: &Path, folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    run(Command::new("tar").arg("--create").arg("--file").arg(archive).arg("--directory").arg(folder).args(entries))?;
    Ok(())
}

pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {}", command.get_program().display()))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{AGNHOST, PAUSE, of_tests};

    #[test]
    fn images_of_tests_are_found_among_all_named() {
        let named = format!(
            "registry.x/agnhost:2.55\n{AGNHOST}\nregistry.x/busybox:1\nregistry.x/nginx:1\nx\n{PAUSE}\nregistry.x/pause:3\n"
        );
        let tags: Vec<_> = of_tests(&named).into_iter().map(|image| (image.tag, image.entrypoint.len())).collect();
        let want = [("registry.x/agnhost:2.55", 1), ("registry.x/busybox:1", 0), ("registry.x/pause:3", 2)];
        assert_eq!(tags, want.map(|(tag, words)| (tag.to_owned(), words)));
    }
}
