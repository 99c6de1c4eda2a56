//! `cargo xtask demo`: from a fresh clone to three nodes on this machine.
//!
//! The demo itself is in the static binary (`tartan demo`); here it is only built, as the user, and started, as root.

use crate::{
    command::{self, Result},
    packages::{self, Lane},
};

/// Builds both binaries with the light profile and runs the demo with `args`.
///
/// # Errors
/// A package cannot be installed, the build fails, or the demo ends with a failure.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    packages::ensure(&[Lane::Build, Lane::Demo])?;
    command::run(&mut command::cargo(&["build", "--profile", "demo", "-p", "tartan-cli", "-p", "tartan-cni"]))?;
    let tartan = command::target_dir().join("demo").join("tartan");
    command::run(command::as_root(tartan).arg("demo").args(args))
}
