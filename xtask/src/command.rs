//! Running other programs: said aloud first, output shown as it comes, errors that name the command.
//!
//! Invariant: nothing is built as root for a user who is not; `as_root` and `with_root_runner` are the only two ways
//! to privilege, and both say so by showing `sudo` in the command they print.

use std::{
    env,
    error::Error,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Any failure here ends in one line for a person; nothing tells errors apart.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the checkout")
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where what is costly to make or to fetch is kept between checkouts, by version.
///
/// # Errors
/// Nobody says where the user's caches are.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    Ok(cache.ok_or("neither XDG_CACHE_HOME nor HOME is set")?.join("tartan"))
}

/// The cargo that runs us, with arguments.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

/// Whether we run as root; `/proc/self` belongs to the effective user.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// `program` with root's rights: as it is for root, through sudo for everyone else.
pub(crate) fn as_root(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--preserve-env").arg(program);
    command
}

/// Makes a `cargo test` build as the user and run only the built tests as root.
pub(crate) fn with_root_runner(command: &mut Command) {
    if !is_root() {
        command.args(["--config", "target.'cfg(all())'.runner=['sudo','--preserve-env']"]);
    }
}

/// Runs to the end, output straight to the terminal.
///
/// # Errors
/// The command cannot start or does not succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    say(command);
    let status = command.status().map_err(|error| cannot_start(command, &error))?;
    if status.success() { Ok(()) } else { Err(format!("{}: {status}", show(command)).into()) }
}

/// Runs to the end; every line of its output is printed at once and handed to `line`. True when it succeeded.
///
/// # Errors
/// The command cannot start.
pub(crate) fn stream(command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    say(command);
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| cannot_start(command, &error))?;
    let stdout = child.stdout.take().expect("piped two lines above");
    for bytes in BufReader::new(stdout).split(b'\n') {
        let text = String::from_utf8_lossy(&bytes?).into_owned();
        println!("{text}");
        line(&text);
    }
    Ok(child.wait()?.success())
}

/// Runs silently and returns what it printed.
///
/// # Errors
/// The command cannot start or does not succeed; what it said is in the error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|error| cannot_start(command, &error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}: {}", show(command), output.status, said.trim()).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn say(command: &Command) {
    println!("$ {}", show(command));
}

fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.strip_prefix(root()).ok().or_else(|| program.file_name().map(Path::new)).unwrap_or(program);
    let args = command.get_args().map(|arg| format!(" {}", arg.to_string_lossy()));
    format!("{}{}", name.display(), args.collect::<String>())
}

fn cannot_start(command: &Command, error: &std::io::Error) -> String {
    format!("{}: cannot start: {error}; is it installed and in PATH?", show(command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = capture(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).expect_err("exits 3");
        for part in ["sh -c", "exit status: 3", "no such thing"] {
            assert!(error.to_string().contains(part), "{part:?} is not in {error}");
        }
        let error = run(&mut Command::new("/nonexistent/tool")).expect_err("does not exist");
        assert!(error.to_string().contains("tool: cannot start"), "{error}");
    }

    #[test]
    fn stream_hands_over_every_line_and_the_outcome() {
        let mut lines: Vec<String> = Vec::new();
        let ok = stream(Command::new("sh").args(["-c", "echo one; echo two; false"]), |line| lines.push(line.into()));
        assert!(!ok.expect("sh starts"));
        assert_eq!(lines, ["one", "two"]);
    }
}
