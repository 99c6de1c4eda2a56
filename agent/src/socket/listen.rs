//! Binding the socket, without a moment in which anybody but root could connect; and what is left of one.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tokio::net::UnixListener;

/// Listens at `path`, in place of a socket that nobody listens on any more.
///
/// The socket is bound in a directory of its own that only root can enter, narrowed, and moved to its place.
pub(crate) fn at(path: &Path) -> Result<UnixListener> {
    let wrong =
        || format!("socket {}: change `socket` in the boot file if that is not where it is to be", path.display());
    refuse_a_second_agent(path).with_context(wrong)?;
    bind(path).with_context(wrong)
}

/// Removes what nobody listens on any more, and its folder if nothing else is in there: a mounted one stays.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let is_left = fs::symlink_metadata(path).is_ok_and(|there| is_socket(&there))
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_left {
        fs::remove_file(path).with_context(|| format!("removing the socket {}", path.display()))?;
    }
    let _stays = path.parent().map(fs::remove_dir);
    Ok(())
}

fn refuse_a_second_agent(path: &Path) -> Result<()> {
    match UnixStream::connect(path) {
        Ok(_) => bail!("another agent listens there; end it first"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context("looking for another agent"),
    }
}

fn bind(path: &Path) -> Result<UnixListener> {
    let parent = path.parent().context("no path of a file")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    if fs::symlink_metadata(path).is_ok_and(|there| !is_socket(&there)) {
        bail!("something else has that name; it is left alone");
    }
    let nursery = parent.join(format!(".tartan-{}", std::process::id()));
    fs::DirBuilder::new().mode(0o700).create(&nursery).with_context(|| format!("making {}", nursery.display()))?;
    let bound = bind_in(&nursery, path);
    fs::remove_dir_all(&nursery).with_context(|| format!("removing {}", nursery.display()))?;
    bound
}

fn bind_in(nursery: &Path, path: &Path) -> Result<UnixListener> {
    let newborn = nursery.join("s");
    let listener = UnixListener::bind(&newborn).context("binding")?;
    fs::set_permissions(&newborn, fs::Permissions::from_mode(0o600)).context("narrowing its mode")?;
    fs::rename(&newborn, path).context("moving it to its place")?;
    Ok(listener)
}

fn is_socket(there: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    there.file_type().is_socket()
}
