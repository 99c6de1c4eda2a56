//! A blocking rtnetlink socket: many requests in one `send`, answers matched by sequence number.
//!
//! Invariant: a dump is whole or an error. What was interrupted, mixed or lost is "unknown", never a shorter list.
//!
//! A socket stays in the network namespace of the thread that opened it.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use crate::KernelError;
use crate::nfnetlink::attr_str;

/// Acknowledgements of a full batch, and the parts of a dump, must fit.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
/// Requests in one `send`; their acknowledgements take less than the receive buffer.
const BATCH: usize = 500;
/// More than the kernel puts into one datagram.
const DATAGRAM_BYTES: usize = 64 << 10;
/// How often a dump that was interrupted is asked for again before it counts as unknown.
const DUMP_TRIES: usize = 5;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_HEADER: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A blocking rtnetlink socket in one network namespace.
pub(crate) struct Netlink {
    socket: Socket,
    port: u32,
    sequence: Sequence,
    buffer: Vec<u8>,
    /// A request was given up before its last answer, which may be in the queue.
    unread: bool,
}

/// The sequence numbers of one socket's requests.
#[derive(Default)]
pub(crate) struct Sequence(u32);

/// One request that changes something, with its `NLM_F_*` beside `REQUEST` and `ACK`.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) message: RouteNetlinkMessage,
    pub(crate) flags: u16,
}

/// What the kernel answered to a request it did not carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    /// The kernel's own words, where it has any.
    pub(crate) says: Option<String>,
}

impl Netlink {
    /// A socket in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Netlink, KernelError> {
        let open = || -> io::Result<Netlink> {
            let (socket, port) = to_the_kernel(NETLINK_ROUTE, RECEIVE_BUFFER_BYTES)?;
            socket.set_netlink_get_strict_chk(true)?;
            let (sequence, buffer) = (Sequence::default(), Vec::with_capacity(DATAGRAM_BYTES));
            Ok(Netlink { socket, port, sequence, buffer, unread: false })
        };
        open().map_err(|error| Refusal::of(&error).doing("open a netlink socket"))
    }

    /// The socket's port: notifications that carry it echo our own requests.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Carries out the requests in order. One result each; a refused request does not stop those after it.
    pub(crate) fn batch(&mut self, requests: &[Request]) -> Vec<Result<(), Refusal>> {
        requests.chunks(BATCH).flat_map(|chunk| self.send_chunk(chunk)).collect()
    }

    /// Asks for a list. `what` names it in errors.
    pub(crate) fn dump(
        &mut self,
        what: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        self.dump_of(what, message, Some)
    }

    /// Asks for a list, and keeps of each object what `of` makes of it: decoded messages take ten times the room.
    pub(crate) fn dump_of<T>(
        &mut self,
        what: &'static str,
        message: RouteNetlinkMessage,
        mut of: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        let mut outcome = Err(KernelError::Interrupted(what));
        for _ in 0..DUMP_TRIES {
            outcome = self.ask(what, message.clone(), NLM_F_DUMP, &mut of);
            if !matches!(outcome, Err(KernelError::Interrupted(_))) {
                break;
            }
        }
        outcome
    }

    /// Asks for one object; none if the kernel has no such thing.
    pub(crate) fn get(
        &mut self,
        what: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, KernelError> {
        match self.ask(what, message, 0, Some) {
            Ok(mut answers) => Ok(answers.pop()),
            Err(KernelError::Refused { errno: Errno::ENODEV | Errno::ENOENT | Errno::ESRCH, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The kernel carries out a datagram's requests one after the other before `send` returns, and tells of each that it
    /// refuses; so the acknowledgement of the last one stands for all those of which nothing was told.
    fn send_chunk(&mut self, requests: &[Request]) -> Vec<Result<(), Refusal>> {
        self.begin();
        let first = self.sequence.next(requests.len());
        let last = requests.len() - 1;
        let mut datagram = Vec::new();
        for (at, request) in requests.iter().enumerate() {
            let ack = if at == last { NLM_F_ACK } else { 0 };
            append(&mut datagram, request.message.clone(), request.flags | ack, first + at as u32);
        }
        let mut results = vec![Ok(()); requests.len()];
        if let Err(error) = self.socket.send(&datagram, 0) {
            results.fill(Err(Refusal::of(&error)));
            return results;
        }
        loop {
            if let Err(error) = self.receive(0) {
                // Of which it was not told that they were refused, it is not known whether they were.
                results.iter_mut().filter(|result| result.is_ok()).for_each(|it| *it = Err(Refusal::of(&error)));
                return results;
            }
            for part in parts(&self.buffer) {
                let at = part.sequence.wrapping_sub(first) as usize;
                if let (Some(result), Some(told)) = (results.get_mut(at), part.acknowledgement()) {
                    *result = told;
                    self.unread &= at != last;
                }
            }
            if !self.unread {
                return results;
            }
        }
    }

    fn ask<T>(
        &mut self,
        what: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
        mut of: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        self.begin();
        let sequence = self.sequence.next(1);
        let mut datagram = Vec::new();
        append(&mut datagram, message, flags, sequence);
        let failed = |error: &io::Error| Refusal::of(error).reading(what);
        self.socket.send(&datagram, 0).map_err(|error| failed(&error))?;
        let mut answers = Vec::new();
        let mut mixed = false;
        loop {
            self.receive(0).map_err(|error| failed(&error))?;
            for part in parts(&self.buffer).filter(|part| part.sequence == sequence) {
                mixed |= part.flags & NLM_F_DUMP_INTR != 0;
                let ended = match part.end() {
                    // A kernel without the family has nothing of it.
                    Some(Err(Refusal { errno: Errno::EAFNOSUPPORT, .. })) => Some(Ok(Vec::new())),
                    Some(Err(refusal)) => Some(Err(refusal.reading(what))),
                    Some(Ok(())) if mixed => Some(Err(KernelError::Interrupted(what))),
                    Some(Ok(())) => Some(Ok(std::mem::take(&mut answers))),
                    None => {
                        answers.extend(of(part.decode(what)?));
                        // One object comes alone, and nothing after it.
                        (flags & NLM_F_DUMP != NLM_F_DUMP).then(|| Ok(std::mem::take(&mut answers)))
                    }
                };
                if let Some(ended) = ended {
                    self.unread = false;
                    return ended;
                }
            }
        }
    }

    /// Before a request: nothing of an earlier one may be taken for its answer, or fill the queue.
    fn begin(&mut self) {
        while std::mem::replace(&mut self.unread, true) {
            if let Err(error) = self.receive(libc::MSG_DONTWAIT) {
                self.unread = error.kind() != io::ErrorKind::WouldBlock;
            }
        }
    }

    fn receive(&mut self, flags: i32) -> io::Result<()> {
        receive(&self.socket, &mut self.buffer, flags)
    }
}

// === impl Sequence ===

impl Sequence {
    /// The first number of so many requests.
    pub(crate) fn next(&mut self, count: usize) -> u32 {
        let count = u32::try_from(count).expect("the send buffer bounds how many go at once");
        // 0 is what notifications carry.
        if self.0 > u32::MAX / 2 {
            self.0 = 0;
        }
        let first = self.0 + 1;
        self.0 += count;
        first
    }
}

/// A socket for requests to the kernel in the network namespace of the calling thread, which answers in its own words and
/// does not send requests back; and its port.
pub(crate) fn to_the_kernel(protocol: isize, receive_buffer: usize) -> io::Result<(Socket, u32)> {
    let mut socket = Socket::new(protocol)?;
    let port = socket.bind_auto()?.port_number();
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer)?;
    Ok((socket, port))
}

/// Receives one datagram; an interrupted call is made again.
pub(crate) fn receive(socket: &Socket, buffer: &mut Vec<u8>, flags: i32) -> io::Result<()> {
    loop {
        buffer.clear();
        match socket.recv(buffer, flags) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(|_| ()),
        }
    }
}

fn append(datagram: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags | NLM_F_REQUEST;
    header.sequence_number = sequence;
    let mut whole = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    whole.finalize();
    let at = datagram.len();
    datagram.resize(at + whole.buffer_len().next_multiple_of(4), 0);
    whole.serialize(&mut datagram[at..]);
}

// === impl Refusal ===

impl Refusal {
    pub(crate) fn of(error: &io::Error) -> Refusal {
        Refusal { errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)), says: None }
    }

    pub(crate) fn doing(self, doing: impl Into<String>) -> KernelError {
        KernelError::Refused { doing: doing.into(), errno: self.errno, says: self.says }
    }

    /// Interrupted dumps and lost answers leave the answer unknown.
    fn reading(self, what: &'static str) -> KernelError {
        match self.errno {
            Errno::EINTR | Errno::ENOBUFS => KernelError::Interrupted(what),
            _ => self.doing(format!("read {what}")),
        }
    }
}

/// One message of a datagram.
pub(crate) struct Part<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Who caused a notification; 0 is the kernel itself.
    pub(crate) port: u32,
    whole: &'a [u8],
}

/// The messages of a datagram; what is malformed ends the walk.
pub(crate) fn parts(mut bytes: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let short = |at: usize| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let wide = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let len = usize::try_from(wide(0)?).ok().filter(|len| *len >= NLMSG_HEADER)?;
        let whole = bytes.get(..len)?;
        let part = Part { kind: short(4)?, flags: short(6)?, sequence: wide(8)?, port: wide(12)?, whole };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(part)
    })
}

impl Part<'_> {
    /// The message, decoded.
    pub(crate) fn decode(&self, what: &'static str) -> Result<RouteNetlinkMessage, KernelError> {
        let unreadable = |says: String| KernelError::Refused {
            doing: format!("understand {what}"),
            errno: Errno::EBADMSG,
            says: Some(says),
        };
        match NetlinkMessage::deserialize(self.whole).map_err(|error| unreadable(error.to_string()))?.payload {
            NetlinkPayload::InnerMessage(message) => Ok(message),
            other => Err(unreadable(format!("{other:?} instead of an object"))),
        }
    }

    /// Without the netlink header.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.whole[NLMSG_HEADER..]
    }

    pub(crate) fn acknowledgement(&self) -> Option<Result<(), Refusal>> {
        (i32::from(self.kind) == libc::NLMSG_ERROR).then(|| self.code())
    }

    /// How the answer ends, if this part ends it.
    pub(crate) fn end(&self) -> Option<Result<(), Refusal>> {
        matches!(i32::from(self.kind), libc::NLMSG_ERROR | libc::NLMSG_DONE).then(|| self.code())
    }

    fn code(&self) -> Result<(), Refusal> {
        let payload = self.payload();
        let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        if code == 0 {
            return Ok(());
        }
        // Capped: only the header of the refused message stands before the attributes. A dump's end has no such header.
        let skipped = if i32::from(self.kind) == libc::NLMSG_ERROR { 4 + NLMSG_HEADER } else { 4 };
        let says = attr_str(payload.get(skipped..).unwrap_or_default(), NLMSGERR_ATTR_MSG);
        Err(Refusal { errno: Errno::from_raw(-code), says })
    }
}
