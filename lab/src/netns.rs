//! Network namespaces by name, and places: where in the machine a closure or a process runs.
//!
//! Invariant: only threads made here ever change namespace. A caller's thread stays where it was, so a bug cannot
//! send a lab's packet from the machine's own namespace.

use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::SigSet;

/// Where `ip netns` keeps its namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// A named network namespace, visible to `ip netns`. A handle: dropping it removes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

/// A network namespace with, for a node, mounts of its own.
#[derive(Debug, Clone)]
pub struct Place {
    netns: Netns,
    mounts: Option<Arc<File>>,
}

/// Something with a namespace and one address per family: what probes run between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What reports call it.
    pub name: String,
    /// Where its sockets are opened.
    pub netns: Netns,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

/// The address family a probe uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order reports print them.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Family::V4 => "v4",
            Family::V6 => "v6",
        })
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Its address in `family`.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

// === impl Netns ===

impl Netns {
    /// Makes the namespace, with `lo` up. Fails if the name is taken or the process lacks the privilege.
    pub fn create(name: &str) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("making network namespace {name} needs root: run this with sudo");
        }
        let made = Command::new("ip").args(["netns", "add", name]).output().context("running `ip` of iproute2")?;
        succeeded("ip netns add", &made)?;
        let netns = Self::named(name);
        netns.ip("link set lo up\n")?;
        Ok(netns)
    }

    /// A handle to a namespace that exists already.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// A handle to the namespace that a file leads to, which needs no name for `ip netns`.
    pub fn at(path: &Path) -> Self {
        // `path` leaves an absolute one as it is.
        Self { name: path.display().to_string() }
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that names it: what a container runtime passes as CNI_NETNS.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Removes the name; the kernel frees the namespace with its last process and socket. Absent is success.
    pub fn delete(&self) -> Result<()> {
        let deleted = Command::new("ip").args(["netns", "del", &self.name]).output().context("running `ip`")?;
        // Asked afterwards, as another lab may be removing the same leftovers.
        if self.path().exists() { succeeded("ip netns del", &deleted) } else { Ok(()) }
    }

    /// The command that puts a person inside.
    pub fn enter_command(&self) -> String {
        format!("nsenter --net={}", self.path().display())
    }

    /// Runs `work` on a thread inside the namespace. Sockets opened there stay there when handed back.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.place().run(work)
    }

    /// Feeds `lines` to `ip -batch -` inside.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], lines)
    }

    /// The same for one address family (`-4` or `-6`).
    pub fn ip_of(&self, family: &str, lines: &str) -> Result<()> {
        self.feed("ip", &[family, "-batch", "-"], lines)
    }

    /// Feeds `rules` to `nft -f -` inside, as one transaction.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.feed("nft", &["-f", "-"], rules)
    }

    /// Writes `/proc/sys/net/KEY` inside.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(Path::new("/proc/sys/net").join(key), value))?
            .with_context(|| format!("setting net/{key}={value} in {}", self.name))
    }

    /// The output of a command inside; a failure carries its stderr.
    pub fn output(&self, argv: &[&str]) -> Result<String> {
        self.place().output(argv)
    }

    fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<()> {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let fed = feed(self.place().spawn(&mut command)?, input)?;
        succeeded(program, &fed).with_context(|| format!("in {}, given:\n{input}", self.name))
    }

    fn place(&self) -> Place {
        Place { netns: self.clone(), mounts: None }
    }
}

// === impl Place ===

impl Place {
    /// The namespace with mounts of its own: a /sys that shows its devices, and whatever mount the machine gains
    /// later (pods' namespaces in /run/netns), but nothing mounted here shows outside.
    pub fn with_own_mounts(netns: &Netns) -> Result<Self> {
        let mounts = netns
            .run(|| -> Result<File> {
                own_mounts()?;
                Ok(File::open("/proc/thread-self/ns/mnt")?)
            })?
            .with_context(|| format!("making the mount namespace of {}", netns.name))?;
        Ok(Self { netns: netns.clone(), mounts: Some(Arc::new(mounts)) })
    }

    /// Runs `work` on a thread that joined the place.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                self.join()?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a process in the place.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.run(|| command.spawn())?.with_context(|| format!("starting {program} in {}", self.netns.name))
    }

    /// The output of a command in the place; a failure carries its stderr.
    pub fn output(&self, argv: &[&str]) -> Result<String> {
        let (program, args) = argv.split_first().context("an empty command")?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.spawn(&mut command)?.wait_with_output()?;
        succeeded(&argv.join(" "), &output).with_context(|| format!("in {}", self.netns.name))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn join(&self) -> Result<()> {
        let file = File::open(self.netns.path()).with_context(|| {
            format!("opening network namespace {} (is its lab still up? see `ip netns`)", self.netns.name)
        })?;
        if let Some(mounts) = &self.mounts {
            // A thread may only change mounts when it shares no working directory with others.
            unshare(CloneFlags::CLONE_FS).context("unsharing the working directory")?;
            setns(mounts, CloneFlags::CLONE_NEWNS).context("joining the mount namespace")?;
        }
        // A process inherits the mask of the thread that starts it, and the holder of a lab may block signals.
        SigSet::empty().thread_set_mask().context("clearing the signal mask")?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("joining {} (needs root)", self.netns.name))
    }
}

/// Where programs look for WireGuard devices that are not the kernel's, by the devices' names alone.
const WIREGUARD_DIR: &str = "/run/wireguard";

/// Gives the calling thread mounts of its own, with a /sys of its network namespace, and sockets of its own WireGuard devices.
pub(crate) fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).context("making mounts private")?;
    // sysfs shows the network devices of whoever mounted it.
    umount2("/sys", MntFlags::MNT_DETACH).context("unmounting the machine's /sys")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("mounting a fresh /sys")?;
    fs::create_dir_all(WIREGUARD_DIR).with_context(|| format!("making {WIREGUARD_DIR}"))?;
    mount(Some("tmpfs"), WIREGUARD_DIR, Some("tmpfs"), MsFlags::empty(), Some("mode=700"))
        .with_context(|| format!("mounting a fresh {WIREGUARD_DIR}"))
}

/// Writes `input` to a child's stdin and collects its output.
pub(crate) fn feed(mut child: Child, input: &str) -> Result<Output> {
    let written = child.stdin.take().context("the child has no stdin")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    // A program that refuses its input closes stdin early; its stderr then says more than EPIPE.
    if output.status.success() {
        written.context("writing to its stdin")?;
    }
    Ok(output)
}

fn succeeded(what: &str, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = [&output.stderr, &output.stdout].map(|s| String::from_utf8_lossy(s).trim().to_owned()).join(" ");
    Err(anyhow!("{what}: {}: {said}", output.status))
}
