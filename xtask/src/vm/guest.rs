//! One program under another kernel: QEMU, and a first root that sees this machine's files.
//!
//! The guest's root is this machine's, read-only, by 9p, with what is written on top in the guest's memory: so the program,
//! its libraries and the tools it runs are where they are here, and nothing here changes. It has no network but what it
//! makes itself. An emulated processor, since not every machine lets guests have the real one: what is measured in there is
//! not speed.
//!
//! Invariant: the guest says how the program ended, in a line of its own; if it does not, the run failed.

use super::{cpio::Archive, emulator, kernel::Kernel};
use crate::command::{self, Result};
use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

/// What the guest needs before it sees this machine's files.
const FIRST_MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// What the kernel would load one by one when it is first asked for, by a program that takes half a second in there each
/// time; a kernel that lacks one of them goes without.
const USUAL_MODULES: &str = "tun veth bridge vxlan ipip sit ip6_tunnel wireguard nfnetlink_log nfnetlink_queue nf_conntrack_netlink \
     nf_tables nft_chain_nat nft_compat nft_ct nft_fib_inet nft_hash nft_limit nft_log nft_masq nft_nat nft_redir \
     nft_reject_inet ip_tables iptable_filter iptable_nat ip6table_filter ip6table_nat xt_comment xt_conntrack";
/// How the guest's last line begins; the exit code follows.
const ENDED: &str = "vm-run: ended with ";
/// Lines of its console that say why a kernel ended.
const A_PANIC: usize = 150;
/// A program that takes longer is killed: a test that hangs must not hold up the run.
const PATIENCE_SECONDS: u32 = 3600;

/// Runs the program as root in a guest of its own, in this directory, with cargo's and our variables. Gives its exit code.
///
/// # Errors
/// The guest cannot be made or started.
pub(super) fn run(kernel: &Kernel, program: &str, args: &[&str]) -> Result<u8> {
    let own = command::target_dir().join("vm").join(std::process::id().to_string());
    fs::create_dir_all(&own)?;
    let (root, console) = (own.join("root.cpio"), own.join("console"));
    fs::write(&root, first_root(kernel, &script(program, args)?)?)?;
    let code = boot(kernel, &root, &console);
    if let Ok(None) = code {
        let said = fs::read_to_string(&console).unwrap_or_default();
        let last: Vec<&str> = said.lines().rev().take(A_PANIC).collect();
        eprintln!("vm: Linux {} ended before {program} did; its last lines:", kernel.release);
        last.iter().rev().for_each(|line| eprintln!("  {line}"));
    }
    fs::remove_dir_all(own)?;
    Ok(code?.unwrap_or(u8::MAX))
}

fn boot(kernel: &Kernel, root: &Path, console: &Path) -> Result<Option<u8>> {
    let mut qemu = Command::new(emulator::program()?);
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-machine", "q35", "-accel", "tcg,thread=multi"]);
    qemu.args(["-cpu", "max", "-smp", "2", "-m", "3072"]);
    // The first serial line is the kernel's console, the second what the program says.
    qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    let share = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";
    qemu.args(["-virtfs", share]).arg("-kernel").arg(kernel.folder.join("vmlinuz")).arg("-initrd").arg(root);
    qemu.args(["-append", "console=ttyS0 quiet oops=panic panic=-1 mitigations=off"]);
    let mut qemu = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let stdout = qemu.stdout.take().expect("piped one line above");
    let mut code = None;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        match line.strip_prefix(ENDED) {
            Some(said) => code = said.trim().parse().ok(),
            None => println!("{line}"),
        }
    }
    qemu.wait()?;
    Ok(code)
}

fn first_root(kernel: &Kernel, script: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "modules", "proc", "sys", "dev", "host", "own", "whole"] {
        archive.directory(directory);
    }
    archive.file("bin/busybox", &fs::read("/bin/busybox")?);
    for (number, module) in kernel.modules(FIRST_MODULES)?.iter().enumerate() {
        archive.file(&format!("modules/{number:02}"), &fs::read(module)?);
    }
    archive.file("init", init(kernel).as_bytes());
    archive.file("script", script.as_bytes());
    Ok(archive.finish())
}

/// The guest's first process.
fn init(kernel: &Kernel) -> String {
    let (folder, release) = (quoted(&kernel.folder.display().to_string()), &kernel.release);
    format!(
        r#"#!/bin/busybox sh
# A line is never a fault here: what matters is missed at the end.
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /host
mount -t tmpfs own /own
mkdir /own/upper /own/work
mount -t overlay -o lowerdir=/host,upperdir=/own/upper,workdir=/own/work root /whole
mkdir -p /whole/lib/modules/{release}
mount -o bind /whole/{folder}/lib/modules/{release} /whole/lib/modules/{release}
for part in proc sys dev; do mount -o move /$part /whole/$part; done
mkdir /whole/dev/shm /whole/dev/pts
mount -t tmpfs own /whole/run; mount -t tmpfs own /whole/dev/shm; mount -t devpts pts /whole/dev/pts
mount -t cgroup2 cgroup /whole/sys/fs/cgroup
cp /script /whole/run/vm-run
# The kernel looks for modprobe where its first process has its root.
exec switch_root -c /dev/ttyS1 /whole /bin/sh /run/vm-run
"#
    )
}

/// What runs once the guest sees this machine's files.
fn script(program: &str, args: &[&str]) -> Result<String> {
    let mut text = String::from("export TERM=dumb\nstty raw -F /dev/ttyS1\nip link set lo up\n");
    text += &format!("modprobe --all --quiet {USUAL_MODULES}\n");
    for (name, value) in env::vars() {
        let ours = ["CARGO", "RUST", "TARTAN_", "PROPTEST_"].iter().any(|prefix| name.starts_with(prefix));
        if ours || ["PATH", "HOME", "LD_LIBRARY_PATH"].contains(&&*name) {
            text += &format!("export {name}={}\n", quoted(&value));
        }
    }
    let words: Vec<String> = [program].iter().chain(args).map(|word| quoted(word)).collect();
    let (here, words) = (quoted(&env::current_dir()?.display().to_string()), words.join(" "));
    text += &format!("(cd {here} && exec timeout -s KILL {PATIENCE_SECONDS} {words} </dev/null)\n");
    Ok(text + &format!("echo \"{ENDED}$?\"\nsync\n/bin/busybox poweroff -f\n"))
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_what_they_are_in_a_shell() {
        for word in ["", "a b", "it's", "$HOME `x` \"y\" \\", "*"] {
            let printed = command::capture(Command::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]));
            assert_eq!(printed.expect("sh prints"), word);
        }
    }
}
