//! `cargo xtask vm`: tests under Debian's kernels, for what this machine's own kernel lacks.
//!
//! cargo builds as ever and hands each test program to a runner, as it does for tests that need root: this program once
//! more, which boots a kernel in QEMU around the program and passes on its output and exit code (guest.rs). Kernels come
//! from Debian's packages (kernel.rs), and so does QEMU where this machine's is too old (emulator.rs).
//!
//! Invariant: a guest that ends without saying how its program ended is a failure, and so is a run without a test.

mod apt;
mod cpio;
mod emulator;
mod guest;
mod kernel;

use crate::{
    command::{self, Result},
    packages::{self, Lane},
    test::Counts,
};
use kernel::{KERNELS, Kernel};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Makes a folder of the user's cache, which has its name, given by who makes it, only when it is whole.
///
/// # Errors
/// As of who makes it; and the cache cannot be written.
fn cached(called: &str, make: impl FnOnce(&Path) -> Result<String>) -> Result<PathBuf> {
    let cache = command::cache_dir()?.join("vm");
    let half = cache.join(format!(".{called}-{}", std::process::id()));
    let named = |error| format!("{}: {error}; is the disk full?", cache.display());
    fs::create_dir_all(&half).map_err(named)?;
    let whole = make(&half).map(|name| cache.join(name));
    let moved = whole.and_then(|whole| match fs::rename(&half, &whole) {
        // Another run was faster.
        Err(_) if whole.exists() => Ok(whole),
        moved => Ok(moved.map(|()| whole).map_err(named)?),
    });
    // There is none if all went well, and else the error that matters is the one that led here.
    let _ = fs::remove_dir_all(&half);
    moved
}

/// A test program, and which of its tests are short.
struct Program {
    package: &'static str,
    test: &'static str,
    short: &'static [&'static str],
}

const fn program(package: &'static str, test: &'static str, short: &'static [&'static str]) -> Program {
    Program { package, test, short }
}

/// What runs unless somebody says what. Short is what CI has the time for: each kind of object in the kernel, and a lab for each
/// of ipip, WireGuard and IPsec.
#[rustfmt::skip]
const PROGRAMS: &[Program] = &[
    program("tartan-kernel", "netstate_twin", &[
        "vm_one_pass_makes_the_kernel_equal_to_any_wanted_state_with_ipsec",
        "vm_one_pass_makes_the_kernel_equal_to_any_wanted_state_with_tunnels",
        "vm_one_pass_makes_the_kernel_equal_to_any_wanted_state_with_wireguard",
    ]),
    program("tartan-kernel", "ipsec", &[
        "vm_addresses_that_change_take_no_number_back",
        "vm_an_agent_that_starts_again_goes_on_with_what_is_there",
        "vm_associations_wrap_packets_in_udp_and_say_so",
        "vm_what_somebody_takes_away_is_made_anew_with_other_keys",
    ]),
    program("tartan-kernel", "sctp", &["vm_sctp_is_judged_by_its_own_ports_and_masqueraded"]),
    program("tartan-lab", "vm", &["vm_ipip_carries_both_families_over_ipv4"]),
    program("tartan-lab", "wireguard", &["vm_an_engine_and_a_kernels_device_are_peers"]),
    program("tartan-lab", "nodes", &[]),
    program("tartan-lab", "ipsec", &["vm_carries_both_families_over_ipv4"]),
];

/// What differs in nothing but when nodes hear is about us and about no kernel: of several kernels it runs under the first.
const UNDER_ONE_KERNEL: &str = "_seconds_apart";

/// How a line of a summary begins that says what did not run.
pub(crate) const LEFT_OUT: &str = "left out ";

/// What was typed after `vm`.
struct Request<'a> {
    kernels: Vec<&'a str>,
    tests: Tests,
}

#[derive(Debug, PartialEq, Eq)]
enum Tests {
    All,
    /// All under one kernel more.
    Again,
    Short,
    /// Arguments of cargo test.
    These(Vec<String>),
}

/// What became of the tests under one kernel.
struct Row {
    kernel: Kernel,
    counts: Counts,
}

/// Names of the kernels there are.
pub(crate) fn kernels() -> impl Iterator<Item = &'static str> {
    KERNELS.iter().map(|kernel| kernel.name)
}

/// `[--kernel NAME]… [--short | -- ARGUMENTS OF CARGO TEST]`.
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
    let request = parse(args)?;
    packages::ensure(&[Lane::Build, Lane::Lab, Lane::Vm])?;
    emulator::program()?;
    let (mut tests, mut left_out) = runs(&request.tests)?;
    let mut rows: Vec<Row> = Vec::new();
    for name in request.kernels {
        if rows.len() == 1 && request.tests == Tests::All {
            (tests, left_out) = runs(&Tests::Again)?;
        }
        let kernel = Kernel::fetch(name)?;
        println!("\n--- {name}: Linux {}", kernel.release);
        let counts = under(&kernel, &tests)?;
        rows.push(Row { kernel, counts });
    }
    print!("{}", summary(&rows, &left_out));
    Ok(rows.into_iter().map(|row| (row.kernel.release, row.counts.failed)).collect())
}

/// Arguments of cargo test, a guest or more for each; and what is left out, a line for each program.
fn runs(tests: &Tests) -> Result<(Vec<Vec<String>>, Vec<String>)> {
    let all = |args: &[&str]| PROGRAMS.iter().map(|program| program.args(args)).collect();
    let left_out = |is_left: &dyn Fn(&Program, &str) -> bool| -> Result<Vec<String>> {
        let lines = PROGRAMS.iter().map(|program| {
            let listed = command::capture(command::cargo(&["test", "--quiet"]).args(program.args(&["--list"])))?;
            program.left_out(&listed, |name| is_left(program, name))
        });
        lines.filter_map(Result::transpose).collect()
    };
    match tests {
        Tests::All => Ok((all(&["--include-ignored"]), Vec::new())),
        Tests::Again => {
            let left_out = left_out(&|_, name| name.ends_with(UNDER_ONE_KERNEL))?.into_iter();
            let left_out = left_out.map(|tests| format!("under all kernels but the first {tests}"));
            Ok((all(&["--include-ignored", "--skip", UNDER_ONE_KERNEL]), left_out.collect()))
        }
        Tests::These(args) => Ok((vec![args.clone()], Vec::new())),
        Tests::Short => {
            let left_out = left_out(&|program, name| !program.short.contains(&name))?;
            let short = PROGRAMS.iter().filter(|program| !program.short.is_empty());
            let args = |program: &Program| program.args(&[&["--include-ignored", "--exact"], program.short].concat());
            Ok((short.map(args).collect(), left_out))
        }
    }
}

impl Program {
    fn args(&self, of_test: &[&str]) -> Vec<String> {
        // Nodes of two labs at once are more than an emulated processor bears.
        let of_cargo = ["-p", self.package, "--test", self.test, "--", "--test-threads"];
        let threads = if self.package == "tartan-lab" { "1" } else { "2" };
        of_cargo.iter().chain(&[threads]).chain(of_test).map(|arg| (*arg).to_owned()).collect()
    }

    /// Of all that `--list` lists, what is left out.
    ///
    /// # Errors
    /// A test that is short is not there: nobody would miss it.
    fn left_out(&self, listed: &str, is_left: impl Fn(&str) -> bool) -> Result<Option<String>> {
        let all: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
        let Program { package, test, short } = self;
        match short.iter().find(|name| !all.contains(name)) {
            Some(name) => Err(format!("{package} {test} has no test {name}; the list is in xtask/src/vm.rs").into()),
            None => {
                let left: Vec<&str> = all.into_iter().filter(|name| is_left(name)).collect();
                Ok((!left.is_empty()).then(|| format!("of {package} {test}: {}", left.join(", "))))
            }
        }
    }
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
    emulator::program()?;
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

fn parse<'a>(args: &[&'a str]) -> Result<Request<'a>> {
    let split = args.iter().position(|arg| *arg == "--");
    let (ours, tests) = args.split_at(split.unwrap_or(args.len()));
    let tests = match tests {
        [_, tests @ ..] if !tests.is_empty() => Tests::These(tests.iter().map(|arg| (*arg).to_owned()).collect()),
        _ => Tests::All,
    };
    let mut request = Request { kernels: Vec::new(), tests };
    let mut ours = ours.iter();
    while let Some(arg) = ours.next() {
        match (*arg, &request.tests) {
            ("--kernel", _) => request.kernels.extend(ours.next()),
            ("--short", Tests::All) => request.tests = Tests::Short,
            _ => {
                let usage = "`vm [--kernel NAME]… [--short | -- ARGUMENTS OF CARGO TEST]`";
                return Err(format!("`{arg}` is not understood: {usage}").into());
            }
        }
    }
    request.kernels.iter().try_for_each(|name| kernel::find(name).map(drop))?;
    if request.kernels.is_empty() {
        request.kernels.push(KERNELS[0].name);
    }
    Ok(request)
}

fn summary(rows: &[Row], left_out: &[String]) -> String {
    let mut text = format!("\n{:<24} {:>7} {:>7} {:>8}\n", "kernel", "passed", "failed", "ignored");
    for Row { kernel, counts } in rows {
        let Counts { passed, failed, ignored, .. } = counts;
        text += &format!("{:<24} {passed:>7} {failed:>7} {ignored:>8}\n", kernel.release);
    }
    text.extend(left_out.iter().map(|tests| format!("{LEFT_OUT}{tests}\n")));
    let left = KERNELS.iter().filter(|known| !rows.iter().any(|row| row.kernel.name == known.name));
    let left: Vec<&str> = left.map(|known| known.name).collect();
    if !left.is_empty() {
        text += &format!("{LEFT_OUT}of kernels: {}\n", left.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_and_tests_follow_two_dashes() {
        let check = |args: &[&str], kernels: &[&str], tests: Tests| {
            let request = parse(args).expect("understood");
            assert_eq!((&*request.kernels, request.tests), (kernels, tests), "{args:?}");
        };
        let these = |args: &[&str]| Tests::These(args.iter().map(|arg| (*arg).to_owned()).collect());
        check(&[], &["bookworm"], Tests::All);
        check(&["--"], &["bookworm"], Tests::All);
        check(&["--short"], &["bookworm"], Tests::Short);
        check(&["--kernel", "trixie", "--kernel", "backports"], &["trixie", "backports"], Tests::All);
        check(&["--short", "--kernel", "trixie"], &["trixie"], Tests::Short);
        check(&["--kernel", "trixie", "--", "-p", "x", "--", "y"], &["trixie"], these(&["-p", "x", "--", "y"]));
        for (args, part) in [
            (&["-p", "x"][..], "`-p` is not understood"),
            (&["--short", "--", "-p", "x"], "`--short` is not understood"),
            (&["--short", "--short"], "`--short` is not understood"),
            (&["--kernel", "sid"], "there are: bookworm"),
        ] {
            let error = parse(args).err().expect("refused").to_string();
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }

    #[test]
    fn the_summary_names_what_was_not_run() {
        let kernel = Kernel { name: "trixie".into(), release: "6.12.1".into(), folder: "/x".into() };
        let row = Row { kernel, counts: Counts { passed: 3, ignored: 1, ..Counts::default() } };
        let text = summary(&[row], &["of x y: a, b".into()]);
        assert!(text.contains("6.12.1                         3       0        1\n"), "{text}");
        assert!(text.ends_with("\nleft out of x y: a, b\nleft out of kernels: bookworm, backports\n"), "{text}");
    }

    #[test]
    fn what_is_short_is_there_and_all_else_is_left_out() {
        let it = program("x", "y", &["b"]);
        let left = |listed: &str| it.left_out(listed, |name| name != "b").map_err(|error| error.to_string());
        assert_eq!(left("a: test\nb: test\nc: test\n\n3 tests, 0 benchmarks\n"), Ok(Some("of x y: a, c".into())));
        assert_eq!(left("b: test\n"), Ok(None));
        assert!(left("a: test\n").is_err_and(|error| error.contains("x y has no test b")));
        let args = it.args(&["--exact", "b"]);
        assert_eq!(args, ["-p", "x", "--test", "y", "--", "--test-threads", "2", "--exact", "b"]);
    }
}
