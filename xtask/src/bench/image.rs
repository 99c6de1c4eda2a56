//! How much a node pulls: the image of this machine's architecture, in a release build.

use super::figure::{Report, Value};
use crate::{command::Result, image};

pub(super) const FIGURES: &[&str] = &["image.size"];

pub(super) fn run(report: &mut Report) -> Result<()> {
    let archive = image::build(&[image::Platform::of_this_machine()?], "release")?;
    report.figure("image.size", Value::once(image::mib(&archive)?), "mib");
    Ok(())
}
