//! The test programs of a package side by side: in most of them somebody waits for somebody, and the processors for both.
//!
//! Invariant: each is run once, and what it says is printed whole at its end.

use super::Counts;
use crate::command::{self, Result};
use std::{
    fs,
    io::{Write, stderr, stdout},
    path::Path,
    process::{Command, Output},
    sync::{Mutex, mpsc},
    thread,
};

/// How a step ends that names all test programs of a package.
pub(super) const EACH: &str = " --test *";

const ABREAST: usize = 2;

/// Builds them, and runs all of them whatever becomes of one. `step`, without [`EACH`], names the package last; `command`
/// makes a command of a step.
///
/// # Errors
/// The build fails, the package has no such programs, or a command cannot start.
pub(super) fn run(step: &str, command: impl Fn(&str) -> Result<Command>, counts: &mut Counts) -> Result<bool> {
    command::run(&mut command(&format!("{step}{EACH} --no-run"))?)?;
    let programs = programs(step.rsplit("tartan-").next().unwrap_or(step))?;
    let mut commands = Vec::new();
    for program in &programs {
        commands.push((program, command(&format!("{step} --test {program}"))?));
    }
    let (left, (done, outputs)) = (Mutex::new(commands.into_iter()), mpsc::channel());
    thread::scope(|scope| {
        for _ in 0..ABREAST {
            let (left, done) = (&left, done.clone());
            scope.spawn(move || {
                let next = || left.lock().expect("nobody panics with it").next();
                while let Some((program, mut command)) = next() {
                    if done.send((program, command.output())).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut ok = true;
        for (program, output) in outputs {
            ok &= told(&output.map_err(|error| format!("{program}: cannot start: {error}"))?, counts)?;
        }
        Ok(ok)
    })
}

/// Last first: those take the longest, and nobody is left alone with one at the end.
fn programs(package: &str) -> Result<Vec<String>> {
    let folder = command::root().join(package).join("tests");
    let mut programs = Vec::new();
    for entry in fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        programs.extend(program(&entry?.path()));
    }
    programs.sort_unstable_by(|one, other| other.cmp(one));
    Ok(programs)
}

/// What cargo calls it: a file, or a folder with a `main.rs`.
fn program(path: &Path) -> Option<String> {
    let is_one = path.extension().is_some_and(|end| end == "rs") || path.join("main.rs").exists();
    is_one.then(|| path.file_stem().map(|name| name.to_string_lossy().into_owned())).flatten()
}

fn told(output: &Output, counts: &mut Counts) -> Result<bool> {
    stderr().write_all(&output.stderr)?;
    stdout().write_all(&output.stdout)?;
    String::from_utf8_lossy(&output.stdout).lines().for_each(|line| counts.add(line));
    Ok(output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_run_once_and_one_that_fails_stops_no_other() {
        let mut counts = Counts::default();
        let shell = |step: &str| {
            let mut command = Command::new("sh");
            let script = match step.rsplit(' ').next().expect("it has words") {
                "--no-run" => "true".to_owned(),
                "packets" => "exit 3".to_owned(),
                _ => "echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'".to_owned(),
            };
            command.args(["-c", &script]);
            Ok(command)
        };
        let ok = run("cargo test -p tartan-kernel", shell, &mut counts).expect("sh starts");
        let programs = programs("kernel").expect("it has tests");
        assert!(programs.contains(&"packets".to_owned()) && programs.contains(&"policy".to_owned()), "{programs:?}");
        assert_eq!((ok, counts.passed as usize), (false, programs.len() - 1));
        assert!(run("cargo test -p tartan-nothing", shell, &mut counts).is_err());
    }
}
