//! The programs under test: those that cargo built beside the running one.
//!
//! Invariant: a lab never runs a program that was built before its sources changed: what it shows would be of another program.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, anyhow};

const BUILD: &str = "`cargo build -p tartan-cli -p tartan-cni`";

/// The programs a lab runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// `tartan`: run as `tartan agent --config BOOT.yaml`.
    pub tartan: PathBuf,
    /// `tartan-cni`; its file name is the netconf's `type`.
    pub cni: PathBuf,
}

impl Binaries {
    /// Those cargo built beside the running program (a test is in `deps` below them, an example in `examples`).
    pub fn beside_this_program() -> Result<Self> {
        let program = std::env::current_exe()?;
        let directory = program.parent().context("the running program has a directory")?;
        let is_below = directory.ends_with("deps") || directory.ends_with("examples");
        let directory = directory.parent().filter(|_| is_below).unwrap_or(directory);
        let find = |name: &str| {
            let file = directory.join(name);
            match is_of_its_sources(&file) {
                Ok(true) => Ok(file),
                Ok(false) => Err(anyhow!("{} is older than its sources: run {BUILD}", file.display())),
                Err(error) => Err(anyhow!("{}: {error}: run {BUILD}", file.display())),
            }
        };
        Ok(Self { tartan: find("tartan")?, cni: find("tartan-cni")? })
    }
}

/// Whether none of the sources that cargo notes beside a program is newer. Where they are not, as in a VM, they did not change.
fn is_of_its_sources(program: &Path) -> io::Result<bool> {
    let built = fs::metadata(program)?.modified()?;
    let noted = fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    let changed = |source: &str| fs::metadata(source).and_then(|about| about.modified());
    Ok(noted.split_whitespace().filter_map(|source| changed(source).ok()).all(|changed| changed <= built))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_program_is_older_than_a_source_that_changed_since() {
        let directory = std::env::temp_dir().join(format!("tartan-lab-built-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let [program, source, notes] = ["program", "source.rs", "program.d"].map(|name| directory.join(name));
        let now = SystemTime::now();
        let made = |file: &Path, age: u64| {
            fs::File::create(file).and_then(|file| file.set_modified(now - Duration::from_secs(age))).unwrap();
        };
        made(&program, 5);
        let is_said = |age: u64| {
            made(&source, age);
            is_of_its_sources(&program).unwrap()
        };
        assert!(is_said(1), "nothing is noted of it");
        fs::write(&notes, format!("{}: /nonexistent.rs {}", program.display(), source.display())).unwrap();
        assert_eq!([is_said(6), is_said(5), is_said(4)], [true, true, false]);
        fs::remove_dir_all(directory).unwrap();
        assert!(is_of_its_sources(&program).is_err(), "it is not there");
    }
}
