//! `cargo xtask test`: the groups in their order, the minutes each took, and one honest summary.
//!
//! Invariant: a group that was asked for either ran at least one check or the run fails. Nothing is left out unless
//! it was named with `--without`, and then the summary says how many tests that cost.

mod abreast;
mod limit;

use crate::{
    command::{self, Result},
    packages::{self, Lane},
    vm::LEFT_OUT,
};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant},
};

/// A part of the proof that can be asked for by name.
pub(crate) struct Group {
    /// What is typed.
    pub name: &'static str,
    /// What it proves.
    pub about: &'static str,
    when: When,
    /// Run as root the tests that `cargo test` built as the user.
    root: bool,
    /// Command lines, split at spaces, run in order until one fails; `xtask` is this program.
    steps: &'static [&'static str],
}

impl Group {
    /// Whether it runs when no group was named.
    pub(crate) fn always(&self) -> bool {
        self.when == When::Always
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    /// Long: CI and people add it by its name.
    Named,
}

const fn group(
    name: &'static str,
    when: When,
    root: bool,
    about: &'static str,
    steps: &'static [&'static str],
) -> Group {
    Group { name, about, when, root, steps }
}

/// Cheapest first, so that a slip is found in the first minute.
#[rustfmt::skip]
pub(crate) const GROUPS: &[Group] = &[
    group("tidy",   When::Always, false, "what compilers do not check: crate edges, lengths, docs", &["xtask tidy"]),
    group("fmt",    When::Always, false, "formatting",                                     &["cargo fmt --all --check"]),
    group("clippy", When::Always, false, "lints, all targets, and the static programs",    &["cargo clippy --workspace --all-targets --quiet -- -D warnings", "cargo clippy -p tartan-lab --example kube --profile test --quiet -- -D warnings", "cargo clippy --target x86_64-unknown-linux-musl -p tartan-cli -p tartan-cni --quiet -- -D warnings"]),
    group("unit",   When::Always, false, "pure code, examples in docs",                    &["cargo test --workspace --exclude tartan-kernel --exclude tartan-lab --lib --bins --tests", "cargo test -p tartan-kernel -p tartan-lab --lib", "cargo test --workspace --doc"]),
    group("kernel", When::Always, true,  "the kernel crate on real kernel objects",        &["cargo test -p tartan-kernel --test *"]),
    group("lab",    When::Always, true,  "whole nodes in network namespaces",              &["cargo build -p tartan-cli -p tartan-cni", "cargo test -p tartan-lab --test *"]),
    group("fuzz",   When::Named,  false, "inputs made from the stored ones, for a while", &["cargo test -p tartan-store -p tartan-agent -p tartan-engine -p tartan-cni --lib --bins -- --ignored --nocapture fuzz"]),
    group("mutants", When::Named, false, "that tests notice known mistakes, made on purpose in a copy", &["xtask mutants"]),
    group("long",   When::Named,  true,  "the ignored tests: long random runs, many repeats", &["cargo build -p tartan-cli -p tartan-cni", "cargo build --profile demo -p tartan-cli", "cargo test -p tartan-lab --test * -- --ignored --skip vm_", "cargo test -p tartan-policy --test agree -- --ignored", "cargo test -p tartan-kernel --test packets -- --ignored", "cargo test --release -p tartan-policy -p tartan-fabric --test scale -- --ignored", "cargo test --release -p tartan-kernel --test policy_scale -- --ignored"]),
    group("vm",     When::Named,  false, "some of what this machine's kernel lacks, under Debian 12's in QEMU", &["xtask vm --short"]),
    group("kube",   When::Named,  false, "a real Kubernetes on this machine",             &["xtask kube test"]),
    group("e2e",    When::Named,  false, "Kubernetes' own conformance tests of networks", &["xtask kube e2e \\[Conformance\\]"]),
];

/// Where random tests begin, by the names of variables: as the environment says, or else somewhere else in each run.
static SEEDS: LazyLock<Vec<(&str, String)>> = LazyLock::new(|| {
    let seed = |name| std::env::var(name).unwrap_or_else(|_| RandomState::new().build_hasher().finish().to_string());
    ["PROPTEST_RNG_SEED", "POLICY_SEED"].map(|name| (name, seed(name))).into()
});

/// What the `test result:` lines of a group add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
    /// Left out by `--without`.
    pub(crate) filtered: u32,
}

struct Row {
    group: &'static Group,
    took: Duration,
    counts: Counts,
    /// Lines by which it said what it left out.
    left_out: Vec<String>,
    ok: bool,
}

/// What was typed after `test`.
struct Request<'a> {
    groups: Vec<&'static Group>,
    without: Vec<&'a str>,
    /// How long all of them may take; as long as they like where nobody says.
    within: Option<Duration>,
}

/// Runs the groups named in `args` (none: all that are not long, and those of `--also`), each to its end, and prints the summary.
///
/// # Errors
/// An unknown group, a package that cannot be installed, or any group that failed, by name.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    let request = parse(args)?;
    let lanes: &[Lane] =
        if request.groups.iter().any(|group| group.root) { &[Lane::Build, Lane::Lab] } else { &[Lane::Build] };
    packages::ensure(lanes)?;
    println!("{}", seeds());
    request.within.into_iter().for_each(limit::start);
    let mut rows = Vec::new();
    for group in &request.groups {
        rows.push(run_group(group, &request.without)?);
    }
    println!("{}", summary(&rows, &request.without));
    match failed_groups(&rows) {
        failed if failed.is_empty() => Ok(()),
        failed => Err(format!("failed: {} ({})", failed.join(", "), seeds()).into()),
    }
}

/// So that the same can be run again.
fn seeds() -> String {
    let seeds: Vec<String> = SEEDS.iter().map(|(name, seed)| format!("{name}={seed}")).collect();
    format!("random tests begin at {}", seeds.join(" "))
}

fn parse<'a>(args: &[&'a str]) -> Result<Request<'a>> {
    let (mut groups, mut also, mut without, mut within) = (Vec::new(), Vec::new(), Vec::new(), None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if *arg == "--without" {
            without.push(*args.next().ok_or("--without wants the name of a kernel feature, as in `--without vxlan`")?);
        } else if *arg == "--within" {
            let minutes: Option<u64> = args.next().and_then(|minutes| minutes.parse().ok());
            within = Some(Duration::from_secs(60 * minutes.ok_or("--within wants minutes, as in `--within 60`")?));
        } else if *arg == "--also" {
            also.push(find(args.next().ok_or("--also wants the name of a group, as in `--also fuzz`")?)?);
        } else {
            groups.push(find(arg)?);
        }
    }
    if groups.is_empty() {
        groups = GROUPS.iter().filter(|group| group.always()).collect();
    }
    groups.extend(also);
    Ok(Request { groups, without, within })
}

fn find(name: &str) -> Result<&'static Group> {
    GROUPS.iter().find(|group| group.name == name).ok_or_else(|| {
        let names: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
        format!("`{name}` is not a group of tests; there are: {}", names.join(" ")).into()
    })
}

fn run_group(group: &'static Group, without: &[&str]) -> Result<Row> {
    println!("\n=== {}: {}", group.name, group.about);
    let start = Instant::now();
    let (mut counts, mut left_out) = (Counts::default(), Vec::new());
    let mut ok = true;
    for step in group.steps {
        if limit::is_over() {
            println!("no time is left for: {step}");
            ok = false;
            break;
        }
        let before = counts;
        ok = match step.strip_suffix(abreast::EACH) {
            // What is long measures, too.
            Some(package) if group.always() => {
                abreast::run(package, |step| step_command(group, step, without), &mut counts)?
            }
            _ => command::stream(&mut step_command(group, step, without)?, |line| {
                counts.add(line);
                left_out.extend(line.starts_with(LEFT_OUT).then(|| line.to_owned()));
            })?,
        };
        if ok && step.starts_with("cargo test") && counts == before {
            println!("no test ran: {step}");
            ok = false;
        }
        if !ok {
            break;
        }
    }
    Ok(Row { group, took: start.elapsed(), counts, left_out, ok })
}

fn step_command(group: &Group, step: &str, without: &[&str]) -> Result<Command> {
    let (step, test_args) = step.split_once(" -- ").unwrap_or((step, ""));
    let words: Vec<&str> = step.split(' ').collect();
    let mut command = match words[0] {
        "xtask" => Command::new(std::env::current_exe()?),
        _ => command::cargo(&[]),
    };
    command.args(&words[1..]);
    let is_test = step.starts_with("cargo test");
    if is_test {
        command.arg("--no-fail-fast");
    }
    command.envs(SEEDS.iter().map(|(name, seed)| (name, seed)));
    if is_test && group.root {
        command::with_root_runner(&mut command);
    }
    let mut test_args: Vec<&str> = test_args.split_whitespace().collect();
    // Only root groups touch the kernel, so only they can miss one of its features.
    if is_test && group.root {
        test_args.extend(without.iter().flat_map(|feature| ["--skip", feature]));
    }
    if !test_args.is_empty() {
        command.arg("--").args(test_args);
    }
    Ok(command)
}

impl Counts {
    /// Adds a line such as `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in`;
    /// any other line changes nothing.
    pub(crate) fn add(&mut self, line: &str) {
        let Some((_, numbers)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for part in numbers.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u32>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                "filtered out" => self.filtered += number,
                _ => {}
            }
        }
    }

    /// Adds what another run counted.
    pub(crate) fn sum(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.filtered += other.filtered;
    }
}

impl Row {
    /// A group that failed without a failing test (a lint, a build) counts as one failure, so that the last line
    /// never says 0 failed of a run that did.
    fn failures(&self) -> u32 {
        if self.ok { self.counts.failed } else { self.counts.failed.max(1) }
    }
}

fn failed_groups(rows: &[Row]) -> Vec<&'static str> {
    rows.iter().filter(|row| row.failures() > 0).map(|row| row.group.name).collect()
}

/// The table, what was left out, what failed, and last the line that CI counts by.
fn summary(rows: &[Row], without: &[&str]) -> String {
    let mut text = format!("\n{:<8} {:>8} {:>7} {:>7} {:>8}\n", "group", "minutes", "passed", "failed", "ignored");
    for Row { group, took, counts, .. } in rows {
        let (name, minutes) = (group.name, took.as_secs_f64() / 60.0);
        let Counts { passed, failed, ignored, .. } = counts;
        text += &format!("{name:<8} {minutes:>8.1} {passed:>7} {failed:>7} {ignored:>8}\n");
    }
    let total = |count: fn(&Row) -> u32| rows.iter().map(count).sum::<u32>();
    if !without.is_empty() {
        let tests = total(|row| row.counts.filtered);
        text += &format!("{LEFT_OUT}with --without {}: {tests} tests\n", without.join(" "));
    }
    text.extend(rows.iter().flat_map(|row| &row.left_out).map(|line| format!("{line}\n")));
    let skipped: Vec<&str> =
        GROUPS.iter().map(|group| group.name).filter(|name| !rows.iter().any(|row| row.group.name == *name)).collect();
    if !skipped.is_empty() {
        text += &format!("not asked for: {}\n", skipped.join(", "));
    }
    let failed = failed_groups(rows);
    if !failed.is_empty() {
        text += &format!("FAILED: {}\n", failed.join(", "));
    }
    text + &format!("{} passed, {} failed", total(|row| row.counts.passed), total(Row::failures))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_only_result_lines() {
        let check = |lines: &[&str], want: Counts| {
            let mut counts = Counts::default();
            lines.iter().for_each(|line| counts.add(line));
            assert_eq!(counts, want, "{lines:?}");
        };
        check(&["running 5 tests", "5 passed", "test result:"], Counts::default());
        check(
            &[
                "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
                "test result: FAILED. 1 passed; 3 failed; 0 ignored; 7 measured; 1 filtered out; finished in 1.00s",
            ],
            Counts { passed: 6, failed: 3, ignored: 1, filtered: 3 },
        );
    }

    #[test]
    fn arguments_name_groups_and_features() {
        let request = parse(&["unit", "--without", "vxlan", "lab"]).expect("both exist");
        assert_eq!(request.groups.iter().map(|group| group.name).collect::<Vec<_>>(), ["unit", "lab"]);
        assert_eq!(request.without, ["vxlan"]);
        assert!(parse(&[]).expect("all").groups.iter().all(|group| group.name != "long"));
        let also = parse(&["--also", "fuzz"]).expect("exists");
        assert_eq!(also.groups.len(), GROUPS.iter().filter(|group| group.always()).count() + 1);
        assert_eq!(also.groups.last().map(|group| group.name), Some("fuzz"));
        assert_eq!(parse(&["unit", "--within", "2"]).expect("minutes").within, Some(Duration::from_secs(120)));
        for (args, part) in [
            (&["unti"][..], "there are: tidy"),
            (&["--within", "unit"], "wants minutes"),
            (&["--without"], "name of a kernel feature"),
            (&["--also", "fuz"], "is not a group"),
        ] {
            let error = parse(args).err().expect("refused").to_string();
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }

    #[test]
    fn only_tests_that_need_root_leave_features_out() {
        let check = |group: &str, step: &str, want: &str| {
            let command = step_command(find(group).expect("exists"), step, &["vxlan"]).expect("one program");
            let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
            // Who is not root has two more arguments, which name sudo.
            let args = args.join(" ").replace("--config target.'cfg(all())'.runner=['sudo','--preserve-env'] ", "");
            assert_eq!(args, want);
        };
        check("unit", "cargo test --lib", "test --lib --no-fail-fast");
        check("kernel", "cargo test --test *", "test --test * --no-fail-fast -- --skip vxlan");
        check("long", "cargo test --lib -- --ignored", "test --lib --no-fail-fast -- --ignored --skip vxlan");
        check("lab", "cargo build -p x", "build -p x");
    }

    #[test]
    fn the_summary_names_what_failed_and_what_was_left_out() {
        let row = |name: &str, counts: Counts, ok: bool| Row {
            group: find(name).expect("exists"),
            took: Duration::from_secs(90),
            counts,
            left_out: vec![format!("left out of {name}")],
            ok,
        };
        let kernel = Counts { passed: 4, filtered: 2, ..Counts::default() };
        let rows = [row("clippy", Counts::default(), false), row("kernel", kernel, true)];
        let text = summary(&rows, &["vxlan"]);
        for part in [
            "kernel        1.5       4",
            "--without vxlan: 2 tests\nleft out of clippy\nleft out of kernel\n",
            "FAILED: clippy\n",
            "not asked for: tidy,",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(text.ends_with("\n4 passed, 1 failed"), "{text}");
    }
}
