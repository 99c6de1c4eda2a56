//! `tartan install`, and `tartan uninstall` for a whole cluster: a manifest with the paths and the API server of a
//! distribution.
//!
//! Invariant: what is printed differs from `deploy/tartan.yaml` or `deploy/uninstall.yaml` only in what was asked for, and is
//! for `kubectl apply -f -`.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::output::say;

#[cfg(test)]
mod chart;

const MANIFEST: &str = include_str!("../../deploy/tartan.yaml");
const TAKE_BACK: &str = include_str!("../../deploy/uninstall.yaml");
/// Where the manifest puts everything.
pub(crate) const NAMESPACE: &str = "tartan-system";
const IMAGE: &str = concat!("image: tartan.dev/tartan:", env!("CARGO_PKG_VERSION"));
const STORE: &str = r#"store: "kubernetes:""#;
/// Where kubeadm's runtime has plugins and their configuration; the agent sees both where the node has them.
const CNI_BIN: &str = "/opt/cni/bin";
const CNI_CONF: &str = "/etc/cni/net.d";

/// What a cluster was made with.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Distribution {
    Kubeadm,
    K3s,
    Rke2,
    Microk8s,
    K0s,
    Talos,
}

/// What a distribution does otherwise than kubeadm.
struct Ways {
    /// How its own network is left out.
    before: &'static str,
    cni_bin: &'static str,
    cni_conf: &'static str,
    /// The API server as every node reaches it without a network; none: by its Service.
    api_server: Option<&'static str>,
}

const USUAL: Ways = Ways { before: "", cni_bin: CNI_BIN, cni_conf: CNI_CONF, api_server: None };

impl Distribution {
    fn ways(self) -> Ways {
        match self {
            Distribution::Kubeadm => Ways { before: "kubeadm init --pod-network-cidr=CIDR[,CIDR6]", ..USUAL },
            // Where its own network is off, its containerd looks in the usual places.
            Distribution::K3s => Ways {
                before: "servers start with --flannel-backend=none --disable-network-policy --cluster-cidr=CIDR[,CIDR6]",
                ..USUAL
            },
            Distribution::Rke2 => Ways { before: "its config.yaml says `cni: none`", ..USUAL },
            Distribution::Microk8s => Ways {
                before: "its Calico is taken out first: microk8s kubectl delete -f /var/snap/microk8s/current/args/cni-network/cni.yaml",
                cni_bin: "/var/snap/microk8s/current/opt/cni/bin",
                cni_conf: "/var/snap/microk8s/current/args/cni-network",
                ..USUAL
            },
            Distribution::K0s => Ways { before: "its config says spec.network.provider: custom", ..USUAL },
            Distribution::Talos => Ways {
                before: "the machine configuration says cluster.network.cni.name: none; KubePrism is on, as it is by default",
                api_server: Some("https://localhost:7445"),
                ..USUAL
            },
        }
    }
}

/// Prints the manifest.
///
/// # Errors
/// What is said to be the API server's address, or the image's name, is none.
pub(crate) fn run(distribution: Distribution, api_server: Option<&str>, image: Option<&str>) -> Result<ExitCode> {
    say(format_args!("{}", manifest(distribution, api_server, image)?.trim_end()))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what takes all back on every node.
///
/// # Errors
/// What is said to be the name of the image, or of the namespace, is none.
pub(crate) fn take_back(distribution: Distribution, image: Option<&str>, namespace: &str) -> Result<ExitCode> {
    say(format_args!("{}", taken_back(distribution, image, namespace)?.trim_end()))?;
    Ok(ExitCode::SUCCESS)
}

fn taken_back(distribution: Distribution, image: Option<&str>, namespace: &str) -> Result<String> {
    ensure!(
        !namespace.is_empty() && namespace.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-')),
        "--namespace: `{namespace}` is no name of a namespace"
    );
    let text = at_home(TAKE_BACK, &distribution.ways(), image)?;
    Ok(text.replace(&format!("namespace: {NAMESPACE}"), &format!("namespace: {namespace}")))
}

fn manifest(distribution: Distribution, api_server: Option<&str>, image: Option<&str>) -> Result<String> {
    let ways = distribution.ways();
    let text = at_home(MANIFEST, &ways, image)?;
    let text = match api_server.or(ways.api_server) {
        None => text,
        Some(address) => {
            ensure!(
                address.starts_with("https://") && !address.contains(['"', ' ', '\n']),
                "--api-server: `{address}` is no address of an API server; it looks like https://HOST:PORT"
            );
            text.replace(STORE, &format!(r#"store: "kubernetes:{address}""#))
        }
    };
    Ok(format!("# Before this: {}.\n{text}", ways.before))
}

/// A manifest with a distribution's folders, and the image where it is.
fn at_home(manifest: &str, ways: &Ways, image: Option<&str>) -> Result<String> {
    let text = manifest.replace(CNI_BIN, ways.cni_bin).replace(CNI_CONF, ways.cni_conf);
    let Some(image) = image else { return Ok(text) };
    ensure!(
        !image.is_empty() && image.chars().all(|c| c.is_ascii_alphanumeric() || "./:@_-".contains(c)),
        "--image: `{image}` is no name of an image"
    );
    Ok(text.replace(IMAGE, &format!("image: {image}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines that differ from the manifest, but for the first.
    fn changed(distribution: Distribution, api_server: Option<&str>, image: Option<&str>) -> Vec<String> {
        let text = manifest(distribution, api_server, image).unwrap();
        let (first, rest) = text.split_once('\n').unwrap();
        assert!(first.starts_with("# Before this: "), "{first}");
        let pairs = rest.lines().zip(MANIFEST.lines()).filter(|(ours, plain)| ours != plain);
        let changed = pairs.map(|(ours, _)| ours.trim().to_owned()).collect();
        assert_eq!(rest.lines().count(), MANIFEST.lines().count());
        changed
    }

    #[test]
    fn places_that_vary_stand_in_the_manifest_as_often_as_they_should() {
        // Operator and holder are of the same image as the agent.
        for (place, times) in [(IMAGE, 3), (STORE, 1), (CNI_BIN, 3), (CNI_CONF, 3)] {
            assert_eq!(MANIFEST.matches(place).count(), times, "{place}");
        }
        for (place, times) in [(IMAGE, 2), (STORE, 0), (CNI_BIN, 2), (CNI_CONF, 2)] {
            assert_eq!(TAKE_BACK.matches(place).count(), times, "{place} where all is taken back");
        }
    }

    #[test]
    fn who_has_folders_of_the_node_may_write_there_under_selinux() {
        let documents = MANIFEST.split("\n---\n").chain(TAKE_BACK.split("\n---\n"));
        let of_the_node: Vec<&str> = documents.filter(|document| document.contains("hostPath:")).collect();
        assert_eq!(of_the_node.len(), 3, "agent, holder, and what takes all back");
        for document in of_the_node {
            assert_eq!(document.matches("              type: spc_t #").count(), 1, "{document}");
        }
    }

    #[test]
    fn only_what_a_distribution_does_otherwise_changes() {
        use Distribution::{K0s, K3s, Kubeadm, Microk8s, Rke2, Talos};
        for distribution in [Kubeadm, K3s, Rke2, K0s] {
            assert!(changed(distribution, None, None).is_empty(), "{distribution:?}");
        }
        assert_eq!(changed(Talos, None, None), [r#"store: "kubernetes:https://localhost:7445""#]);
        assert_eq!(
            changed(Microk8s, None, None),
            [
                "cniBin: /var/snap/microk8s/current/opt/cni/bin",
                "cniConf: /var/snap/microk8s/current/args/cni-network",
                "- {name: cni-bin, mountPath: /var/snap/microk8s/current/opt/cni/bin}",
                "- {name: cni-conf, mountPath: /var/snap/microk8s/current/args/cni-network}",
                "hostPath: {path: /var/snap/microk8s/current/opt/cni/bin, type: DirectoryOrCreate}",
                "hostPath: {path: /var/snap/microk8s/current/args/cni-network, type: DirectoryOrCreate}",
            ]
        );
        assert_eq!(
            changed(Talos, Some("https://[fd00::1]:6443"), Some("registry.example:5000/tartan@sha256:0a")),
            [
                r#"store: "kubernetes:https://[fd00::1]:6443""#,
                "image: registry.example:5000/tartan@sha256:0a",
                "image: registry.example:5000/tartan@sha256:0a",
                "image: registry.example:5000/tartan@sha256:0a",
            ]
        );
    }

    #[test]
    fn all_is_taken_back_from_where_it_was_put() {
        let told = taken_back(Distribution::Microk8s, Some("registry.example/tartan"), "elsewhere").unwrap();
        for place in ["/var/snap/microk8s/current/opt/cni/bin", "/var/snap/microk8s/current/args/cni-network"] {
            assert_eq!(told.matches(&format!("hostPath: {{path: {place},")).count(), 1, "{place} in\n{told}");
        }
        assert_eq!(told.matches("image: registry.example/tartan\n").count(), 2, "{told}");
        assert_eq!(told.matches("  namespace: elsewhere\n").count(), 1, "{told}");
        assert_eq!(taken_back(Distribution::Kubeadm, None, NAMESPACE).unwrap(), TAKE_BACK);
    }

    #[test]
    fn what_would_break_the_manifest_is_refused() {
        let check = |api_server: Option<&str>, image: Option<&str>, wanted: &str| {
            let error = manifest(Distribution::Kubeadm, api_server, image).unwrap_err().to_string();
            assert_eq!(error, wanted);
        };
        let api_server =
            "--api-server: `10.0.0.1:6443` is no address of an API server; it looks like https://HOST:PORT";
        check(Some("10.0.0.1:6443"), None, api_server);
        check(None, Some("x\n  evil: 1"), "--image: `x\n  evil: 1` is no name of an image");
        check(None, Some(""), "--image: `` is no name of an image");
        let error = taken_back(Distribution::Kubeadm, None, "a/b").unwrap_err().to_string();
        assert_eq!(error, "--namespace: `a/b` is no name of a namespace");
    }
}
