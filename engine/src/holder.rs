//! The holder: keeps descriptors under names for an engine, and starts the engine again whenever it ends.
//!
//! One that an agent starts is in a session of its own, and in the control group at the top of each hierarchy that it sees:
//! whoever ends the agent with all its processes does not end it. It ends when the engine says that nothing is left to be
//! carried. In a cluster, where a container's processes end with it, one in a container of its own stays ([`stay`]).
//!
//! Invariant: it knows nothing of what it keeps, so it needs no upgrade for an engine's sake.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::rights;
use crate::wire::{self, Ask, Question, VERSION};

/// Under this name an engine finds the socket that agents speak on,
pub(crate) const CONTROL: &str = "control";
/// and the holder the program to start in its own's place.
pub(crate) const PROGRAM: &str = "program";
/// All that is kept has been given.
pub(crate) const GO: &str = "go";
const KEEP: &str = "keep ";
const DROP: &str = "drop ";
const END: &str = "end";
/// Another engine is to be started beside the one that says this, and to go on when it ends: it is given all that is kept now, and
/// once more then.
const NEXT: &str = "next";
/// It is to be no more.
const ALONE: &str = "alone";

/// Longest word.
const WORD: usize = 256;
/// Descriptors kept at most.
const MOST: usize = 256;
/// An engine that lives no longer than this has not started,
const YOUNG: Duration = Duration::from_secs(1);
/// and when this many have not, the next one is the holder's own program, and the others wait.
const TRIES: u32 = 3;

/// One end of the way between holder and engine: words, each with a descriptor or none.
pub(crate) struct Channel(OwnedFd);

impl Channel {
    pub(crate) fn new(end: OwnedFd) -> Channel {
        Channel(end)
    }

    fn say(&self, word: &str, fd: Option<&OwnedFd>) -> nix::Result<()> {
        rights::send(&self.0, word.as_bytes(), fd)
    }

    pub(crate) fn keep(&self, name: &str, fd: &OwnedFd) -> nix::Result<()> {
        self.say(&format!("{KEEP}{name}"), Some(fd))
    }

    /// What it keeps too long does no harm.
    pub(crate) fn let_go(&self, name: &str) {
        let _gone = self.say(&format!("{DROP}{name}"), None);
    }

    pub(crate) fn end(&self) -> nix::Result<()> {
        self.say(END, None)
    }

    pub(crate) fn start_next(&self) -> nix::Result<()> {
        self.say(NEXT, None)
    }

    /// Where there is no other, nothing happens.
    pub(crate) fn end_next(&self) {
        let _gone = self.say(ALONE, None);
    }

    /// Whether there is something to hear, if need be after that many milliseconds.
    pub(crate) fn has_word(&self, within: u16) -> bool {
        poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::from(within)) != Ok(0)
    }

    /// The next word; none when the other end is gone.
    pub(crate) fn hear(&self) -> nix::Result<Option<(String, Option<OwnedFd>)>> {
        let mut buffer = [0; WORD];
        let (length, fd) = rights::receive(&self.0, &mut buffer)?;
        let word = String::from_utf8_lossy(&buffer[..length]).into_owned();
        Ok((length > 0).then_some((word, fd)))
    }
}

/// Makes the socket and starts a holder that goes on by itself.
///
/// # Errors
/// The socket cannot be made, or the program not started.
pub fn start(socket: &Path) -> io::Result<()> {
    let listener = listen(socket)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("tartan").arg("hold").arg("--detached").arg("--socket").arg(socket);
    command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).process_group(0).spawn().map(drop)
}

/// The holder that [`start`] starts, with the socket as its standard input. Returns when nothing is left.
///
/// # Errors
/// No engine can be started at all.
pub fn detached(socket: &Path) -> io::Result<()> {
    let _alone = nix::unistd::setsid();
    let _named = nix::sys::prctl::set_name(c"tartan-holder");
    leave_control_groups();
    let own = fs::metadata(socket)?.ino();
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    hold(&mut BTreeMap::from([(CONTROL.to_owned(), control)]))?;
    let_go_of(socket, own)
}

/// A holder for whatever agent comes: there is no engine until one asks for it, and none once nothing is left to be carried.
/// Where another holder has the socket, it waits for that one's end first. SIGTERM and SIGINT end it, with its socket.
///
/// # Errors
/// The socket cannot be made, or no engine be started at all.
pub fn stay(socket: &Path) -> io::Result<()> {
    let _named = nix::sys::prctl::set_name(c"tartan-holder");
    while let Ok(mut other) = UnixStream::connect(socket) {
        // It says nothing: this is its end, or that of its engine.
        let watch = Question { version: VERSION, ask: Ask::Watch };
        let _ended = wire::write(&mut other, &watch).and_then(|()| other.read(&mut [0]).map(drop));
    }
    let control = OwnedFd::from(listen(socket)?);
    end_when_asked(socket)?;
    let mut kept = BTreeMap::from([(CONTROL.to_owned(), control.try_clone()?)]);
    loop {
        let mut asked = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
        match poll(&mut asked, PollTimeout::NONE) {
            // Who has asked waits in the socket until there is an engine. The program stays that of the last agent.
            Ok(_) => {
                hold(&mut kept)?;
                kept.retain(|name, _| [CONTROL, PROGRAM].contains(&name.as_str()));
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Signals that a process holds back reach it even if it is the first one of a container.
#[allow(
    clippy::disallowed_methods,
    reason = "what is held ends with the process, and its main thread may wait for an engine"
)]
fn end_when_asked(socket: &Path) -> io::Result<()> {
    let (socket, own) = (socket.to_owned(), fs::metadata(socket)?.ino());
    let asked = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    asked.thread_block()?;
    let end = move || {
        let done = asked.wait().map_err(io::Error::from).and_then(|_| let_go_of(&socket, own));
        std::process::exit(i32::from(done.is_err()));
    };
    thread::Builder::new().name("end-when-asked".into()).spawn(end).map(drop)
}

/// Removes the socket, unless another holder has come already and made one of its own.
fn let_go_of(socket: &Path, own: u64) -> io::Result<()> {
    let is_own = fs::metadata(socket).is_ok_and(|there| there.ino() == own);
    if is_own { fs::remove_file(socket) } else { Ok(()) }
}

/// The socket, in place of one of a holder that is gone: whoever makes it has found that nobody answers. Who can connect can have any
/// program run, so it has its name once root alone can.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    let newborn = socket.with_extension("new");
    match fs::remove_file(&newborn) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&newborn)?;
    fs::set_permissions(&newborn, fs::Permissions::from_mode(0o600))?;
    fs::rename(&newborn, socket)?;
    Ok(listener)
}

/// Until nothing is left.
fn hold(kept: &mut BTreeMap<String, OwnedFd>) -> io::Result<()> {
    let mut failed = 0;
    let mut next = None;
    loop {
        let started = Instant::now();
        if failed == TRIES {
            eprintln!("tartan hold: no engine of the new program has lived; back to the one that came before");
            kept.remove(PROGRAM);
        }
        let mut engine = next.take().map_or_else(|| Engine::start(kept), Ok)?;
        engine.tell(kept);
        let ended = serve(&engine.channel, kept, &mut next);
        // It hangs on nothing of ours any more, and may be on its way out.
        let status = engine.child.wait()?;
        if ended {
            next.take().map_or(Ok(()), Engine::kill)?;
            return Ok(());
        }
        failed = if started.elapsed() < YOUNG { failed + 1 } else { 0 };
        let goes_on = if next.is_some() { "another one goes on" } else { "it is started again" };
        eprintln!("tartan hold: the engine ended ({status}), and {goes_on}");
        if failed > 1 {
            let pause = Duration::from_millis(100) * failed.min(50);
            let _over = poll(&mut [], PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO));
        }
    }
}

/// An engine, and the way to it.
struct Engine {
    child: Child,
    channel: Channel,
}

impl Engine {
    /// Of the program that is kept; it waits to be told.
    fn start(kept: &BTreeMap<String, OwnedFd>) -> io::Result<Engine> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let program = match kept.get(PROGRAM) {
            Some(program) => PathBuf::from(format!("/proc/self/fd/{}", program.as_raw_fd())),
            None => PathBuf::from("/proc/self/exe"),
        };
        let child = Command::new(program).arg0("tartan").arg("engine").stdin(theirs).spawn()?;
        Ok(Engine { child, channel: Channel(ours) })
    }

    /// All that is kept. One that dies while it is told is one that dies.
    fn tell(&self, kept: &BTreeMap<String, OwnedFd>) {
        let told = kept.iter().try_for_each(|(name, fd)| self.channel.say(name, Some(fd)));
        let _dead = told.and_then(|()| self.channel.say(GO, None));
    }

    fn kill(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

/// Until the engine ends. Whether nothing is left to be carried.
fn serve(channel: &Channel, kept: &mut BTreeMap<String, OwnedFd>, next: &mut Option<Engine>) -> bool {
    while let Ok(Some((word, fd))) = channel.hear() {
        match (word.strip_prefix(KEEP), word.strip_prefix(DROP), fd) {
            (Some(name), _, Some(fd)) if kept.len() < MOST || kept.contains_key(name) => {
                kept.insert(name.to_owned(), fd);
            }
            (_, Some(name), None) => drop(kept.remove(name)),
            _ if word == END => return true,
            _ if [NEXT, ALONE].contains(&word.as_str()) => {
                if let Err(error) = set_next(next, kept, word == NEXT) {
                    eprintln!("tartan hold: the engine that was to be next: {error}");
                }
            }
            _ => eprintln!("tartan hold: the engine says '{word}', which means nothing"),
        }
    }
    false
}

fn set_next(next: &mut Option<Engine>, kept: &BTreeMap<String, OwnedFd>, wanted: bool) -> io::Result<()> {
    next.take().map_or(Ok(()), Engine::kill)?;
    if wanted {
        next.insert(Engine::start(kept)?).tell(kept);
    }
    Ok(())
}

/// Best effort: where it sees no hierarchy, there is none to leave.
fn leave_control_groups() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for root in hierarchies(&mounts) {
        let _not_ours = fs::write(Path::new(root).join("cgroup.procs"), std::process::id().to_string());
    }
}

/// Where hierarchies of control groups begin, as proc_pid_mountinfo(5) has it.
fn hierarchies(mounts: &str) -> impl Iterator<Item = &str> {
    mounts.lines().filter_map(|mount| {
        let (before, after) = mount.split_once(" - ")?;
        let is_one = matches!(after.split(' ').next()?, "cgroup" | "cgroup2");
        before.split(' ').nth(4).filter(|_| is_one)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_among_mounts() {
        let mounts = "22 1 0:20 / /sys rw,nosuid - sysfs sysfs rw\n\
            33 22 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
            34 22 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
            broken\n35 22 0:29 / /cgroup2 rw - tmpfs cgroup rw\n";
        assert_eq!(hierarchies(mounts).collect::<Vec<_>>(), ["/sys/fs/cgroup", "/sys/fs/cgroup/pids"]);
    }

    #[test]
    fn the_socket_is_for_root_alone_and_takes_the_place_of_one_that_nobody_answers_at() {
        let dir = std::env::temp_dir().join(format!("tartan-holder-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let socket = dir.join("engine.sock");
        for _ in 0..2 {
            let listener = listen(&socket).unwrap();
            let there = fs::metadata(&socket).unwrap();
            assert_eq!(there.permissions().mode() & 0o777, 0o600);
            UnixStream::connect(&socket).unwrap();
            listener.accept().unwrap();
        }
        // A holder lets go of its own alone.
        let own = fs::metadata(&socket).unwrap().ino();
        let_go_of(&socket, own + 1).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        let_go_of(&socket, own).unwrap();
        fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn what_is_kept_under_a_name_takes_the_place_of_what_was() {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let (holder, engine) = (Channel(ours), Channel(theirs));
        let file = |size: u64| -> OwnedFd {
            let name = std::env::temp_dir().join(format!("tartan-kept-{}", std::process::id()));
            let file = fs::File::create(&name).unwrap();
            fs::remove_file(name).unwrap();
            file.set_len(size).unwrap();
            file.into()
        };
        engine.keep("a", &file(1)).unwrap();
        engine.keep("b", &file(2)).unwrap();
        engine.keep("a", &file(3)).unwrap();
        engine.let_go("b");
        engine.say("sing", None).unwrap();
        let mut kept = BTreeMap::new();
        drop(engine);
        assert!(!serve(&holder, &mut kept, &mut None));
        let size = |fd: OwnedFd| fs::File::from(fd).metadata().unwrap().len();
        assert_eq!(kept.into_iter().map(|(name, fd)| (name, size(fd))).collect::<Vec<_>>(), [("a".to_owned(), 3)]);
    }
}
