//! `cargo xtask kube`: a real Kubernetes on this machine. Its programs are built here, as the user, through the Go
//! module proxy; the cluster itself is `lab/examples/kube`, as root.
//!
//! Invariant: what is built is what `kube/*/go.mod` and its `go.sum` say, kept outside the checkout under a name that
//! changes with them; a program that is there was built to its end.

use crate::{
    bench,
    command::{self, Result},
    image,
    packages::{self, Lane},
    previous,
    test::Counts,
};
use std::{
    collections::hash_map::DefaultHasher,
    env,
    ffi::OsString,
    fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

/// The Kubernetes that is meant when none is named: a folder of `kube/`.
pub(crate) const NEWEST: &str = "1.36";
/// The folders of `kube/` with what is there whatever the Kubernetes: what a node runs, containerd and stock plugins;
/// CoreDNS; Flannel with the plugins it stands on; and the library of older runtimes. Each has versions of its own, so that a change of one does not
/// build the others anew.
const COMMON: [&str; 4] = ["node", "coredns", FLANNEL, "libcni"];
const FLANNEL: &str = "flannel";
/// Names and users are looked up without the C library, whatever else needs C.
const GO_ALONE: &str = "netgo,osusergo";
/// Where the cluster's programs and Tartan's image are, for the harness.
const PATH: &str = "TARTAN_KUBE_PATH";

/// Carries out `up`, `test`, `e2e` or `down`.
///
/// # Errors
/// An unknown word, a package that cannot be installed, a build that fails, or the harness's own.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    match args {
        ["up", rest @ ..] => match rest {
            [] => up(NEWEST, "tartan"),
            ["--stock"] => up(NEWEST, "stock"),
            ["--flannel"] => up(NEWEST, FLANNEL),
            [version] => up(version, "tartan"),
            [version, "--stock"] => up(version, "stock"),
            [version, "--flannel"] => up(version, FLANNEL),
            _ => Err("kube up: at most a version, and --stock or --flannel".into()),
        },
        ["test", version, names @ ..] if is_known(version)? => test(version, names),
        ["test", names @ ..] => test(NEWEST, names),
        ["e2e"] => bench::run(&["e2e"]),
        ["e2e", version, focus @ ..] if is_known(version)? => e2e_passes(version, focus),
        ["e2e", focus @ ..] => e2e_passes(NEWEST, focus),
        ["down"] => harness(&["down"], &[]),
        other => Err(format!("kube: `{}` is none of: up, test, e2e, down", other.join(" ")).into()),
    }
}

fn up(version: &str, network: &str) -> Result<()> {
    let path = programs(version)?;
    harness(&["up", network], &path)
}

/// All tests, or those on clusters whose names hold one of the texts.
fn test(version: &str, names: &[&str]) -> Result<()> {
    let path = env::join_paths(programs(version)?)?;
    if names.is_empty() {
        // The store first: it needs an API server only, and no root.
        let mut store = command::cargo(&["test", "-p", "tartan-store", "--lib", "kubernetes"]);
        command::run(store.args(["--", "--ignored"]).env(PATH, &path))?;
    }
    build_harness()?;
    let mut cluster = command::cargo(&["test", "-p", "tartan-lab", "--example", "kube"]);
    command::with_root_runner(&mut cluster);
    cluster.args(["--", "--test-threads=1"]).args(names).env(PATH, &path);
    let mut counts = Counts::default();
    let all_passed = command::stream(&mut cluster, |line| counts.add(line))?;
    match (all_passed, counts.passed) {
        (false, _) => Err(format!("tests on Kubernetes {version} failed").into()),
        (true, 0) => {
            Err(format!("{0} is no Kubernetes that is here, and no test's name holds it", names.join(" or ")).into())
        }
        (true, _) => Ok(()),
    }
}

fn is_known(version: &str) -> Result<bool> {
    Ok(versions()?.iter().any(|known| known == version))
}

/// Ends with what `cargo test` would say: `xtask test` counts it.
fn e2e_passes(version: &str, focus: &[&str]) -> Result<()> {
    let (mut passed, mut failed) = (0, 0);
    let whole = e2e(version, focus, |line| {
        for (name, count) in [("e2e.all.passed ", &mut passed), ("e2e.all.failed ", &mut failed)] {
            *count += line.strip_prefix(name).and_then(|number| number.parse::<u32>().ok()).unwrap_or_default();
        }
    })?;
    let word = if whole { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    if whole { Ok(()) } else { Err(format!("e2e tests of Kubernetes {version} failed").into()) }
}

/// Kubernetes' own network tests against Tartan: those that the expressions in `focus` match, or all that Tartan is held
/// to. What the harness says is printed, and handed to `line`. True when none failed.
///
/// # Errors
/// A package that cannot be installed, a build that fails.
pub(crate) fn e2e(version: &str, focus: &[&str], line: impl FnMut(&str)) -> Result<bool> {
    packages::ensure(&[Lane::E2e])?;
    let path = programs(version)?;
    kubernetes(version)?.build_suite()?;
    build_harness()?;
    let mut e2e = command::as_root(harness_program());
    command::stream(e2e.arg("e2e").args(focus).env(PATH, env::join_paths(path)?), line)
}

/// Figures of a cluster with Tartan as it is shipped. What the harness says is printed, and handed to `line`. True when it
/// measured all.
///
/// # Errors
/// A package that cannot be installed, a build that fails.
pub(crate) fn measure(line: impl FnMut(&str)) -> Result<bool> {
    let mut path = programs_in(NEWEST, "release")?;
    path.push(previous::build(&command::cache_dir()?)?);
    build_harness()?;
    let mut measure = command::as_root(harness_program());
    command::stream(measure.arg("measure").env(PATH, env::join_paths(path)?), line)
}

/// Builds the harness as the user and runs it as root.
fn harness(args: &[&str], path: &[PathBuf]) -> Result<()> {
    build_harness()?;
    command::run(command::as_root(harness_program()).args(args).env(PATH, env::join_paths(path)?))
}

fn harness_program() -> PathBuf {
    command::target_dir().join("debug").join("examples").join("kube")
}

fn build_harness() -> Result<()> {
    command::run(&mut command::cargo(&["build", "--quiet", "-p", "tartan-lab", "--example", "kube"]))
}

// --- the cluster's programs ---

/// Everything a cluster of that version runs, and `tartan` for whoever types, built if need be: the folders it is in.
fn programs(version: &str) -> Result<Vec<PathBuf>> {
    programs_in(version, "demo")
}

/// The same with Tartan in a cargo profile.
fn programs_in(version: &str, profile: &str) -> Result<Vec<PathBuf>> {
    let kubernetes = kubernetes(version)?;
    packages::ensure(&[Lane::Build, Lane::Kube])?;
    let mut folders = vec![kubernetes.build()?];
    for common in COMMON {
        folders.push(Module::open(Path::new("kube").join(common))?.build()?);
    }
    let platform = image::Platform::of_this_machine()?;
    let image = image::build(&[platform], profile)?;
    folders.extend(image.parent().map(Path::to_path_buf));
    folders.push(platform.programs(profile)?);
    Ok(folders)
}

fn kubernetes(version: &str) -> Result<Module> {
    let module = Path::new("kube").join(version);
    if COMMON.contains(&version) || !module.join("go.mod").exists() {
        return Err(format!("there is no Kubernetes {version} here; there are: {}", versions()?.join(" ")).into());
    }
    Module::open(module)
}

fn versions() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("kube")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| !COMMON.contains(&name.as_str()));
    names.sort();
    Ok(names)
}

/// A Go module of `kube/`, and where what is built of it is kept.
struct Module {
    path: PathBuf,
    go_mod: String,
    folder: PathBuf,
}

impl Module {
    fn open(path: PathBuf) -> Result<Self> {
        let go_mod = fs::read_to_string(path.join("go.mod"))?;
        let name = cache_name(&path, &go_mod, &fs::read_to_string(path.join("go.sum"))?);
        Ok(Self { path, go_mod, folder: command::cache_dir()?.join("kube").join(name) })
    }

    /// Builds its tools that are not there yet; gives their folder.
    fn build(&self) -> Result<PathBuf> {
        for tool in tools(&self.go_mod) {
            self.compile(&["build"], tool, program_of(tool))?;
        }
        Ok(self.folder.clone())
    }

    /// Builds Kubernetes' own network tests, which are a program as well.
    fn build_suite(&self) -> Result<()> {
        self.compile(&["test", "-c", "-vet=off"], "./e2e", "e2e.test")
    }

    fn compile(&self, how: &[&str], package: &str, program: &str) -> Result<()> {
        let whole = self.folder.join(program);
        if whole.exists() {
            return Ok(());
        }
        println!("Building {program} into {}; from cold that takes minutes.", self.folder.display());
        fs::create_dir_all(&self.folder)?;
        // Renamed when it is whole. Whose checkout it is, or whether it is one, is nothing to the build.
        let half = self.folder.join(format!(".{program}"));
        let mut build = Command::new(go(&self.go_mod)?);
        let c = if program == FLANNEL { "1" } else { "0" };
        build.current_dir(&self.path).env("CGO_ENABLED", c).args(how).args([
            "-trimpath",
            "-buildvcs=false",
            "-tags",
            GO_ALONE,
            "-ldflags",
        ]);
        command::run(build.arg(linker_flags(&self.go_mod, program)).arg("-o").arg(&half).arg(package))?;
        Ok(fs::rename(half, whole)?)
    }
}

fn cache_name(module: &Path, go_mod: &str, go_sum: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (go_mod, go_sum).hash(&mut hasher);
    format!("{}-{:016x}", module.file_name().unwrap_or_default().to_string_lossy(), hasher.finish())
}

/// The packages of the `tool` block; a single one has a line of its own.
fn tools(go_mod: &str) -> Vec<&str> {
    let block =
        go_mod.split_once("\ntool (\n").and_then(|(_, rest)| rest.split_once("\n)")).map_or("", |(block, _)| block);
    let single = go_mod.lines().filter_map(|line| line.strip_prefix("tool ")).filter(|tool| *tool != "(");
    block.lines().map(str::trim).filter(|line| !line.is_empty()).chain(single).collect()
}

/// What `go build` would call it: the last part of its path that is no major version.
fn program_of(tool: &str) -> &str {
    let is_version = |part: &str| part.strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok());
    tool.rsplit('/').find(|part| !is_version(part)).unwrap_or(tool)
}

/// Without its version a Kubernetes calls itself v0.0.0, which its own parts refuse to work with. One of Flannel's
/// backends is C.
fn linker_flags(go_mod: &str, program: &str) -> OsString {
    let mut flags = "-s -w".to_owned();
    if program == FLANNEL {
        flags += " -linkmode external -extldflags -static";
    }
    if let Some(version) = required(go_mod, "k8s.io/kubernetes") {
        let numbers: Vec<&str> = version.trim_start_matches('v').split('.').collect();
        let values = [("gitVersion", version), ("gitMajor", numbers[0]), ("gitMinor", numbers.get(1).unwrap_or(&""))];
        for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
            for (name, value) in values {
                flags += &format!(" -X {package}.{name}={value}");
            }
        }
    }
    flags.into()
}

/// The version of a module that a go.mod requires.
fn required<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    let line = |line: &'a str| line.trim().trim_start_matches("require ").strip_prefix(module)?.strip_prefix(' ');
    go_mod.lines().filter(|line| !line.contains("=>")).find_map(line)?.split(' ').next()
}

// --- Go ---

/// A `go` that can build the module: the machine's own where it is new enough or can fetch a newer one by itself, else
/// the one it brings through the module proxy, as newer ones do.
fn go(go_mod: &str) -> Result<PathBuf> {
    let version = command::capture(Command::new("go").arg("version"))?;
    if minor_of(&version).is_some_and(|minor| minor >= 21) {
        return Ok("go".into());
    }
    let wanted = go_mod.lines().find_map(|line| line.strip_prefix("go ")).ok_or("go.mod says no version of Go")?;
    let toolchain = format!("golang.org/toolchain@v0.0.1-go{wanted}.linux-amd64");
    let said = command::capture(Command::new("go").current_dir("/").args(["mod", "download", "-json", &toolchain]))?;
    let dir = said.lines().find_map(|line| line.trim().strip_prefix("\"Dir\": \"")?.split('"').next());
    let dir = PathBuf::from(dir.ok_or_else(|| format!("`go mod download` named no folder:\n{said}"))?);
    // Modules carry no mode bits.
    let programs = [dir.join("bin"), dir.join("pkg").join("tool")];
    command::run(Command::new("chmod").args(["-R", "u+w,+x"]).args(programs))?;
    Ok(dir.join("bin").join("go"))
}

/// 19 of `go version go1.19.8 linux/amd64`.
fn minor_of(version: &str) -> Option<u32> {
    version.split("go1.").nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO_MOD: &str = "module x\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes v1.36.2\n\ntool (\n\tgo.etcd.io/etcd/server/v3\n\
         \tk8s.io/kubernetes/cmd/kubelet\n)\n\nrequire (\n\tk8s.io/api v0.0.0 // indirect\n)\n\n\
         replace k8s.io/api => k8s.io/api v0.36.2\n";

    #[test]
    fn tools_and_their_names_are_read_from_go_mod() {
        assert_eq!(tools(GO_MOD), ["go.etcd.io/etcd/server/v3", "k8s.io/kubernetes/cmd/kubelet"]);
        assert_eq!(tools(GO_MOD).into_iter().map(program_of).collect::<Vec<_>>(), ["server", "kubelet"]);
        assert_eq!(program_of("x/containerd-shim-runc-v2"), "containerd-shim-runc-v2");
        assert_eq!(tools("module x\n\ntool x/dns\n"), ["x/dns"]);
        assert!(tools("module x\n").is_empty());
    }

    #[test]
    fn a_kubernetes_knows_its_version() {
        assert_eq!(required(GO_MOD, "k8s.io/kubernetes"), Some("v1.36.2"));
        assert_eq!(required(GO_MOD, "k8s.io/api"), Some("v0.0.0"));
        assert_eq!(required(GO_MOD, "k8s.io/apiserver"), None);
        let flags = linker_flags(GO_MOD, "kubelet").into_string().expect("text");
        assert!(flags.contains("-X k8s.io/client-go/pkg/version.gitMinor=36"), "{flags}");
        assert_eq!(linker_flags("module x\n", "x"), "-s -w");
        assert!(linker_flags("module x\n", FLANNEL).into_string().expect("text").ends_with("-static"));
    }

    #[test]
    fn the_cache_follows_what_is_built() {
        let name = |go_mod: &str, go_sum: &str| cache_name(Path::new("kube/1.36"), go_mod, go_sum);
        assert_eq!(name("a", "b"), name("a", "b"));
        assert!(name("a", "b") != name("a", "c") && name("a", "b") != name("c", "b"));
        assert!(name("a", "b").starts_with("1.36-"));
    }

    #[test]
    fn old_go_is_told_from_new() {
        assert_eq!(minor_of("go version go1.19.8 linux/amd64\n"), Some(19));
        assert_eq!(minor_of("go version go1.26rc1 linux/amd64"), Some(26));
        assert_eq!(minor_of("gccgo"), None);
    }
}
