//! `cargo xtask vm`: tests under Debian's kernels, for what this machine's own kernel lacks.
//!
//! cargo builds as ever and hands each test program to a runner, as it does for tests that need root: this program once
//! more, which boots a kernel in QEMU around the program and passes on its output and exit code (guest.rs). Kernels come
//! from Debian's packages (kernel.rs).
//!
//! Invariant: a guest that ends without saying how its program ended is a failure, and so is a run without a test.

mod cpio;
mod guest;
mod kernel;

use crate::{
    command::{self, Result},
    packages::{self, Lane},
    test::Counts,
};
use kernel::{KERNELS, Kernel};
use std::{env, path::Path, process::Command};

/// What runs unless somebody says what.
const TESTS: &[&[&str]] = &[
    &["-p", "tartan-kernel", "--test", "netstate_twin", "--test", "ipsec", "--", "--include-ignored"],
    &[
        "-p",
        "tartan-lab",
        "--test",
        "vm",
        "--test",
        "wireguard",
        "--test",
        "ipsec",
        "--",
        "--include-ignored",
        "--test-threads",
        "1",
    ],
];

/// What became of the tests under one kernel.
struct Row {
    kernel: Kernel,
    counts: Counts,
}

/// Names of the kernels there are.
pub(crate) fn kernels() -> impl Iterator<Item = &'static str> {
    KERNELS.iter().map(|kernel| kernel.name)
}

/// `[--kernel NAME]… [-- ARGUMENTS OF CARGO TEST]`.
///
/// # Errors
/// An unknown kernel, one that cannot be fetched, or any test that failed.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    let failed: u32 = measure(args)?.iter().map(|(_, failed)| failed).sum();
    if failed == 0 { Ok(()) } else { Err(format!("{failed} tests failed").into()) }
}

/// Kernels under which tests ran, each with how many failed.
///
/// # Errors
/// As for [`run`], but for tests that fail.
pub(crate) fn measure(args: &[&str]) -> Result<Vec<(String, u32)>> {
    let (names, tests) = parse(args)?;
    packages::ensure(&[Lane::Build, Lane::Lab, Lane::Vm])?;
    let mut rows = Vec::new();
    for name in names {
        let kernel = Kernel::fetch(name)?;
        println!("\n--- {name}: Linux {}", kernel.release);
        let counts = under(&kernel, &tests)?;
        rows.push(Row { kernel, counts });
    }
    print!("{}", summary(&rows));
    Ok(rows.into_iter().map(|row| (row.kernel.release, row.counts.failed)).collect())
}

/// The runner that cargo starts with a test program: boots the kernel of a folder around it.
///
/// # Errors
/// The guest cannot start. That it, or the program in it, fails is the exit code.
pub(crate) fn run_in_guest(args: &[&str]) -> Result<u8> {
    let [folder, program, args @ ..] = args else { return Err("vm-run wants a kernel's folder and a program".into()) };
    guest::run(&Kernel::open(Path::new(folder))?, program, args)
}

/// What runs a program under a kernel of that name, and which release that is.
///
/// # Errors
/// As for [`measure`].
pub(crate) fn under_named(kernel: &str, program: &Path) -> Result<(String, Command)> {
    let kernel = Kernel::fetch(kernel)?;
    let mut command = Command::new(env::current_exe()?);
    command.arg("vm-run").arg(&kernel.folder).arg(program);
    Ok((kernel.release, command))
}

fn under(kernel: &Kernel, tests: &[Vec<String>]) -> Result<Counts> {
    // Agents and the plugin are run by tests, not linked into them.
    command::run(&mut command::cargo(&["build", "--quiet", "-p", "tartan-cli", "-p", "tartan-cni"]))?;
    let runner = format!(
        "target.'cfg(all())'.runner=['{}','vm-run','{}']",
        env::current_exe()?.display(),
        kernel.folder.display()
    );
    let mut all = Counts::default();
    for args in tests {
        let mut cargo = command::cargo(&["test", "--no-fail-fast", "--config", &runner]);
        let mut counts = Counts::default();
        let ok = command::stream(cargo.args(args), |line| counts.add(line))?;
        // A guest or a build that failed has no line that counts it.
        if counts.failed == 0 && (!ok || counts.passed == 0) {
            counts.failed = 1;
        }
        all.sum(counts);
    }
    Ok(all)
}

fn parse<'a>(args: &[&'a str]) -> Result<(Vec<&'a str>, Vec<Vec<String>>)> {
    let split = args.iter().position(|arg| *arg == "--");
    let (ours, tests) = args.split_at(split.unwrap_or(args.len()));
    let mut names = Vec::new();
    for pair in ours.chunks(2) {
        let ["--kernel", name] = pair else {
            return Err(format!(
                "`{}` is not understood: `vm [--kernel NAME]… [-- ARGUMENTS OF CARGO TEST]`",
                pair.join(" ")
            )
            .into());
        };
        kernel::find(name)?;
        names.push(*name);
    }
    if names.is_empty() {
        names.push(KERNELS[0].name);
    }
    let own = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect();
    let tests = match tests {
        [] | ["--"] => TESTS.iter().map(|args| own(args)).collect(),
        [_, tests @ ..] => vec![own(tests)],
    };
    Ok((names, tests))
}

fn summary(rows: &[Row]) -> String {
    let mut text = format!("\n{:<24} {:>7} {:>7} {:>8}\n", "kernel", "passed", "failed", "ignored");
    for Row { kernel, counts } in rows {
        let Counts { passed, failed, ignored, .. } = counts;
        text += &format!("{:<24} {passed:>7} {failed:>7} {ignored:>8}\n", kernel.release);
    }
    let left = KERNELS.iter().filter(|known| !rows.iter().any(|row| row.kernel.name == known.name));
    let left: Vec<&str> = left.map(|known| known.name).collect();
    if !left.is_empty() {
        text += &format!("not asked for: {}\n", left.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_and_tests_follow_two_dashes() {
        let check = |args: &[&str], kernels: &[&str], tests: usize, first: &[&str]| {
            let (names, found) = parse(args).expect("understood");
            assert_eq!((names.as_slice(), found.len()), (kernels, tests), "{args:?}");
            assert_eq!(found[0], first, "{args:?}");
        };
        check(&[], &["bookworm"], TESTS.len(), TESTS[0]);
        check(&["--"], &["bookworm"], TESTS.len(), TESTS[0]);
        check(&["--kernel", "trixie", "--kernel", "backports"], &["trixie", "backports"], TESTS.len(), TESTS[0]);
        check(&["--kernel", "trixie", "--", "-p", "x", "--", "y"], &["trixie"], 1, &["-p", "x", "--", "y"]);
        for (args, part) in [
            (&["--kernel"][..], "is not understood"),
            (&["-p", "x"], "is not understood"),
            (&["--kernel", "sid"], "there are: bookworm"),
        ] {
            let error = parse(args).expect_err("refused").to_string();
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }

    #[test]
    fn the_summary_names_kernels_that_were_not_run() {
        let kernel = Kernel { name: "trixie".into(), release: "6.12.1".into(), folder: "/x".into() };
        let text = summary(&[Row { kernel, counts: Counts { passed: 3, ignored: 1, ..Counts::default() } }]);
        assert!(text.contains("6.12.1                         3       0        1\n"), "{text}");
        assert!(text.ends_with("not asked for: bookworm, backports\n"), "{text}");
    }
}
