//! What must be installed: found by the tool or file it brings, said aloud, then installed with apt-get.
//!
//! Invariant: nothing is installed and nothing runs as root before it was printed what and why. What only a bench or
//! the demo needs is not asked for by the tests.

use crate::command::{self, Result, as_root};
use std::{
    env,
    path::{Path, PathBuf},
};

/// What somebody is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Compile.
    Build,
    /// Run the tests that make network namespaces.
    Lab,
    /// Run the demo.
    Demo,
    /// Measure against stock tools.
    Bench,
    /// Make a Kubernetes cluster.
    Kube,
    /// Run Kubernetes' own tests in one.
    E2e,
    /// Run tests under other kernels.
    Vm,
}

impl Lane {
    fn root_for(self) -> Option<&'static str> {
        match self {
            Lane::Build | Lane::E2e | Lane::Vm => None,
            Lane::Lab => Some("tests that make network namespaces, links, routes and nft tables of their own"),
            Lane::Demo => Some("the demo's network namespaces; it removes them at its end"),
            Lane::Bench => Some("the network namespaces that benches measure in"),
            Lane::Kube => Some("a cluster's nodes: namespaces, control groups and mounts of their own"),
        }
    }
}

struct Package {
    name: &'static str,
    /// A tool looked for in PATH, or an absolute path.
    brings: &'static str,
    lanes: &'static [Lane],
    why: &'static str,
}

const fn package(name: &'static str, brings: &'static str, lanes: &'static [Lane], why: &'static str) -> Package {
    Package { name, brings, lanes, why }
}

#[rustfmt::skip]
const PACKAGES: &[Package] = &[
    package("gcc",         "cc",                   &[Lane::Build],                       "rustc links with it"),
    package("libc6-dev",   "/usr/include/stdio.h", &[Lane::Build],                       "rustc links against it"),
    package("iproute2",    "ip",                   &[Lane::Lab, Lane::Demo, Lane::Bench, Lane::Kube], "a second opinion on links and routes; yardsticks"),
    package("nftables",    "nft",                  &[Lane::Lab, Lane::Demo, Lane::Bench, Lane::Kube], "a second opinion on our tables; foreign firewalls"),
    package("iptables",    "iptables",             &[Lane::Lab, Lane::Bench, Lane::Kube], "foreign firewalls as Docker writes them; stock plugins and kube-proxy use it"),
    package("curl",        "curl",                 &[Lane::Lab, Lane::Demo, Lane::Kube], "to ask pods by hand"),
    package("tshark",      "tshark",               &[Lane::Lab],                         "a second opinion on what is on the wire"),
    package("containernetworking-plugins", "/usr/lib/cni/ptp", &[Lane::Lab, Lane::Bench], "the stock plugins we are chained and compared with"),
    package("golang-go",   "go",                   &[Lane::Kube],                        "builds Kubernetes, etcd and containerd"),
    package("runc",        "runc",                 &[Lane::Kube],                        "starts containers; building it would need C libraries"),
    package("bind9-dnsutils",   "dig",             &[Lane::E2e],                         "Kubernetes' tests ask DNS servers in pods with it"),
    package("netcat-openbsd",   "nc",              &[Lane::E2e],                         "Kubernetes' tests connect from pods with it"),
    package("wget",        "wget",                 &[Lane::E2e],                         "Kubernetes' tests fetch from pods with it"),
    package("qemu-system-x86",  "qemu-system-x86_64", &[Lane::Vm],                       "runs other kernels"),
    // The package `busybox` brings a program of that name that needs libraries.
    package("busybox-static",   "/usr/share/doc/busybox-static/copyright", &[Lane::Vm],   "the first programs under another kernel"),
    package("kmod",        "depmod",               &[Lane::Vm],                          "says which modules a kernel's module needs, and loads them"),
    package("xz-utils",    "unxz",                 &[Lane::Vm],                          "unpacks kernels' modules"),
    package("ipvsadm",     "ipvsadm",              &[Lane::Vm],                          "Services as kube-proxy's mode ipvs has them"),
    package("wireguard-tools", "wg",               &[Lane::Bench, Lane::Vm],             "a second opinion on WireGuard devices"),
    package("openssl",     "openssl",              &[Lane::Kube],                        "the cluster's certificates"),
];

/// Debian keeps these out of an ordinary user's PATH; what we run as root has them.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Says what is missing for these lanes and what needs root, and installs it.
///
/// # Errors
/// apt-get is not here or fails; the error lists the packages, so that a person can install them.
pub(crate) fn ensure(lanes: &[Lane]) -> Result<()> {
    let missing = missing(lanes, |brings| exists(brings, &search_path()));
    print!("{}", announce(lanes, &missing));
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    install(&names).map_err(|error| {
        format!("{error}\ninstall by hand what brings these, then try again: {}", names.join(" ")).into()
    })
}

fn install(names: &[&str]) -> Result<()> {
    command::run(as_root("apt-get").args(["update", "--quiet"]))?;
    let env = ["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--quiet", "--no-install-recommends"];
    command::run(as_root("env").args(env).args(names))
}

fn missing(lanes: &[Lane], exists: impl Fn(&str) -> bool) -> Vec<&'static Package> {
    let wanted = PACKAGES.iter().filter(|package| package.lanes.iter().any(|lane| lanes.contains(lane)));
    wanted.filter(|package| !exists(package.brings)).collect()
}

fn announce(lanes: &[Lane], missing: &[&Package]) -> String {
    let mut text = String::new();
    if !missing.is_empty() {
        text += "These Debian packages are missing and will be installed with apt-get, as root:\n";
        for package in missing {
            text += &format!("  {:<28} {}\n", package.name, package.why);
        }
    }
    let root_for: Vec<&str> = lanes.iter().filter_map(|lane| lane.root_for()).collect();
    if !root_for.is_empty() {
        text += &format!("Root is needed for {}. Builds run as you.\n", root_for.join("; "));
    }
    text
}

fn search_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(SBIN.map(PathBuf::from)).collect()
}

fn exists(brings: &str, search_path: &[PathBuf]) -> bool {
    match Path::new(brings) {
        file if file.is_absolute() => file.exists(),
        tool => search_path.iter().any(|folder| folder.join(tool).is_file()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_lane_needs_is_asked_for() {
        let check = |lanes: &[Lane], have: &[&str], want: &[&str]| {
            let names: Vec<_> = missing(lanes, |brings| have.contains(&brings)).iter().map(|p| p.name).collect();
            assert_eq!(names, want, "{lanes:?} with {have:?}");
        };
        check(&[Lane::Build], &[], &["gcc", "libc6-dev"]);
        check(&[Lane::Build], &["cc", "/usr/include/stdio.h"], &[]);
        check(
            &[Lane::Build, Lane::Lab],
            &["cc", "/usr/include/stdio.h", "ip"],
            &["nftables", "iptables", "curl", "tshark", "containernetworking-plugins"],
        );
        check(&[Lane::Demo], &["ip", "nft"], &["curl"]);
    }

    #[test]
    fn a_tool_is_found_beyond_the_users_path_and_a_file_by_its_path() {
        let sbin: Vec<PathBuf> = vec!["/usr/bin".into(), "/bin".into()];
        assert!(exists("sh", &sbin));
        assert!(exists("/proc/self/exe", &[]));
        assert!(!exists("no-such-tool", &sbin) && !exists("/no/such/file", &sbin));
    }

    #[test]
    fn packages_and_root_are_said_before_anything_happens() {
        let text = announce(&[Lane::Build, Lane::Lab], &missing(&[Lane::Lab], |_| false));
        for part in ["iproute2", "nftables", "iptables", "as root", "Root is needed for tests", "Builds run as you"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert_eq!(announce(&[Lane::Build], &[]), "", "a build that lacks nothing needs no root");
    }
}
