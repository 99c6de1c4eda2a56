//! Packages of another suite of Debian than this machine's, fetched and unpacked, never installed.
//!
//! apt does it all, with lists of its own: this machine's are for the release it runs. So it takes the mirror that this
//! machine takes, and checks signatures as ever.

use crate::command::{self, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A suite's lists, and room for its packages, in a folder that is gone when this is.
pub(super) struct Suite {
    folder: PathBuf,
}

/// Which of a package's files are unpacked, as tar has patterns.
pub(super) struct Files {
    pub(super) these: &'static [&'static str],
    pub(super) but_not: &'static [&'static str],
}

impl Suite {
    /// # Errors
    /// apt knows no mirror of Debian, or cannot get the suite's lists from it.
    pub(super) fn open(name: &str, folder: &Path) -> Result<Suite> {
        let suite = Suite { folder: folder.to_owned() };
        fs::create_dir_all(folder.join("lists").join("partial"))?;
        fs::create_dir_all(folder.join("packages"))?;
        fs::write(suite.sources(), format!("deb {} {name} main\n", mirror()?))?;
        command::capture(suite.with("apt-get").args(["update", "--quiet"]))?;
        Ok(suite)
    }

    /// What the newest package of that name says of itself.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn show(&self, package: &str) -> Result<String> {
        command::capture(self.with("apt-cache").args(["show", "--no-all-versions", package]))
    }

    /// Unpacks what these packages have of these files into a folder.
    ///
    /// # Errors
    /// A package cannot be fetched. That a file is in none of them is no fault here.
    pub(super) fn unpack(&self, packages: &[&str], files: &Files, into: &Path) -> Result<()> {
        let here = self.folder.join("packages");
        command::run(self.with("apt-get").args(["download", "--quiet"]).args(packages).current_dir(&here))?;
        // No package has all of these, which tar takes for a fault.
        let each =
            "for deb in \"$0\"/*.deb; do dpkg-deb --fsys-tarfile \"$deb\" | tar -x -C \"$@\" 2>/dev/null; done; true";
        let mut unpack = Command::new("sh");
        unpack.args(["-c", each]).arg(here).arg(into);
        unpack.args(files.but_not.iter().map(|part| format!("--exclude={part}")));
        command::run(unpack.args(["--wildcards", "--no-same-owner"]).args(files.these).env("LC_ALL", "C"))
    }

    fn sources(&self) -> PathBuf {
        self.folder.join("sources.list")
    }

    fn with(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["-o", "Dir::Etc::SourceParts=/dev/null", "-o", "Debug::NoLocking=1", "-o"]);
        command.arg(format!("Dir::State::Lists={}", self.folder.join("lists").display())).arg("-o");
        command.arg(format!("Dir::Cache={}", self.folder.display())).arg("-o");
        command.arg(format!("Dir::Etc::SourceList={}", self.sources().display()));
        // As root apt would fetch as somebody who may not write here.
        command.args(["-o", "APT::Sandbox::User="]);
        command
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        // What is left of it costs room and nothing else.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Where this machine gets Debian from.
fn mirror() -> Result<String> {
    let said = command::capture(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))?;
    let mirror = said.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    let error = "apt knows no mirror of Debian; what `cargo xtask vm` runs comes from one: add it to its sources";
    Ok(mirror.ok_or(error)?.to_owned())
}
