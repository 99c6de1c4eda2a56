//! `cargo xtask`: every chore of the repository: test, tidy, gen, demo, bench, kube, vm, image.
//!
//! Invariant: it depends on no crate at all, ours or others'. So it links with the linker that rustup brings, starts
//! on a machine that has no C compiler, and can install one there (packages.rs).
#![allow(clippy::print_stdout, reason = "a developer's program: what it prints is its product")]

mod bench;
mod command;
mod demo;
mod r#gen;
mod image;
mod kube;
mod matrix;
mod mutants;
mod packages;
mod previous;
mod test;
mod tidy;
mod vm;

use command::Result;
use std::process::ExitCode;

/// What a person can type, and what it does: the help text, and what the docs are checked against.
pub(crate) const COMMANDS: &[(&str, &str)] = &[
    (
        "test [GROUP…] [--also GROUP…] [--without FEATURE…] [--within MINUTES]",
        "prove everything this machine can prove; or only the named groups",
    ),
    ("tidy", "check what compilers do not: crate edges, lengths, docs"),
    ("demo [--yes]", "three nodes on this machine, shown, broken and repaired; `--yes` asks nothing"),
    ("bench [GROUP…]", "measure against yardsticks in the same run; prints `figure NAME VALUE UNIT`"),
    (
        "matrix [WORD…]",
        "everything that is to work, on every fabric over every underlay, or in the rows that have these words; what came of it goes into docs/matrix.md",
    ),
    ("mutants", "break the policy compiler in known points, one by one, and see that its tests notice"),
    ("kube up|down [VERSION]", "a real Kubernetes of three nodes on this machine: make it, remove it"),
    ("kube test [VERSION] [NAME…]", "tests on clusters made for them: all, or those whose names hold a NAME"),
    (
        "kube e2e [VERSION] [FOCUS…]",
        "Kubernetes' own network tests against Tartan: `bench e2e`, or the specs whose names match a FOCUS",
    ),
    (
        "vm [--kernel bookworm|trixie|backports]… [--short | -- CARGO-TEST-ARGUMENTS]",
        "tests under a kernel of Debian's, in QEMU, for what this machine's own lacks; `--short`: those of CI",
    ),
    ("image [ARCH…]", "the container image, for this machine's architecture or the named ones, in one archive"),
    ("gen", "write the generated tables of the docs and the definitions in deploy/ again"),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["vm-run", rest @ ..] = args.as_slice() {
        // cargo starts it where the program is to run, and takes its exit code for the program's.
        return vm::run_in_guest(rest).map_or_else(failed, ExitCode::from);
    }
    run(&args).map_or_else(failed, |()| ExitCode::SUCCESS)
}

fn failed(error: Box<dyn std::error::Error>) -> ExitCode {
    eprintln!("xtask: {error}");
    ExitCode::FAILURE
}

fn run(args: &[&str]) -> Result<()> {
    std::env::set_current_dir(command::root())?;
    match args {
        ["test", rest @ ..] => test::run(rest),
        ["tidy"] => tidy::run(),
        ["demo"] => demo::run(&[]),
        ["demo", "--yes"] => demo::run(&["--yes"]),
        ["bench", groups @ ..] => bench::run(groups),
        ["matrix", words @ ..] => matrix::run(words),
        ["mutants"] => mutants::run(),
        ["kube", rest @ ..] => kube::run(rest),
        ["vm", rest @ ..] => vm::run(rest),
        ["image", rest @ ..] => image::run(rest),
        ["gen"] => r#gen::run(),
        [] | ["help" | "--help" | "-h"] => {
            print!("{}", help());
            Ok(())
        }
        other => Err(format!("`{}` is not a command\n\n{}", other.join(" "), help()).into()),
    }
}

fn help() -> String {
    let row = |(usage, about): &(&str, &str)| format!("  cargo xtask {usage:<36} {about}\n");
    let groups = |names: Vec<&str>| names.join(" ");
    format!(
        "{}\ngroups of test:  {}\ngroups of bench: {}\n",
        COMMANDS.iter().map(row).collect::<String>(),
        groups(test::GROUPS.iter().map(|group| group.name).collect()),
        groups(bench::GROUPS.iter().map(|group| group.name).collect()),
    )
}
