//! nfnetlink: one socket for nf_tables and ctnetlink, with a writer and a reader of attributes.
//!
//! Invariant: every integer in an attribute is big-endian. The kernel handles a message while `send` runs, so when it
//! returns all refusals of a transaction wait in the receive queue; no acknowledgement has to be asked for.
//!
//! A socket stays in the network namespace of the thread that opened it.

use std::io;

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use crate::KernelError;
use crate::netlink::{NLM_F_DUMP_INTR, Sequence, to_the_kernel};

/// A whole transaction of tens of thousands of elements must fit into one `send`.
const SEND_BUFFER_BYTES: usize = 64 << 20;
/// Refusals of a transaction queue up here until they are read.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
/// More than the kernel puts into one datagram.
const DATAGRAM_BYTES: usize = 64 << 10;

pub(crate) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
pub(crate) const NFGEN_HEADER: usize = 4;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
const NLM_F_CAPPED: u16 = 0x100;

/// A blocking nfnetlink socket.
pub(crate) struct Nfnetlink {
    socket: Socket,
    port: u32,
    sequence: Sequence,
}

/// One request, or one step of a transaction.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Subsystem in the high byte, message type in the low one.
    pub(crate) kind: u16,
    /// `NLM_F_*`; `NLM_F_REQUEST` is added.
    pub(crate) flags: u16,
    /// `NFPROTO_*`.
    pub(crate) family: u8,
    /// Attributes.
    pub(crate) attrs: Attrs,
}

/// A message the kernel answered with.
#[derive(Debug)]
pub(crate) struct Reply {
    /// `NFPROTO_*`.
    pub(crate) family: u8,
    /// Attributes, encoded.
    pub(crate) attrs: Vec<u8>,
}

/// A message of a transaction that the kernel refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Which one; none when it is the transaction as a whole.
    pub(crate) index: Option<usize>,
    pub(crate) errno: Errno,
    /// The kernel's own words, where it has any.
    pub(crate) says: Option<String>,
}

/// Attributes being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attrs(pub(crate) Vec<u8>);

// === impl Nfnetlink ===

impl Nfnetlink {
    /// A socket in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Nfnetlink, KernelError> {
        let open = || -> io::Result<(Socket, u32)> {
            let (socket, port) = to_the_kernel(NETLINK_NETFILTER, RECEIVE_BUFFER_BYTES)?;
            setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES)?;
            Ok((socket, port))
        };
        let (socket, port) = open().map_err(|error| refused("open an nfnetlink socket", &error))?;
        Ok(Nfnetlink { socket, port, sequence: Sequence::default() })
    }

    /// The socket's netlink port: notifications of what it caused carry it.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Sends one request and collects the answer: an acknowledgement, one message, or a dump.
    pub(crate) fn request(&mut self, message: &Message, doing: &'static str) -> Result<Vec<Reply>, KernelError> {
        let mut replies = Vec::new();
        self.request_each(message, doing, |family, attrs| replies.push(Reply { family, attrs: attrs.to_vec() }))?;
        Ok(replies)
    }

    /// Sends one request and tells of each message of the answer: its `NFPROTO_*` and its attributes.
    pub(crate) fn request_each(
        &mut self,
        message: &Message,
        doing: &'static str,
        mut tell: impl FnMut(u8, &[u8]),
    ) -> Result<(), KernelError> {
        self.drain();
        let sequence = self.sequence.next(1);
        let dump = message.flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut datagram = Vec::new();
        message.write(&mut datagram, sequence, if dump { 0 } else { NLM_F_ACK });
        self.socket.send(&datagram, 0).map_err(|error| refused(doing, &error))?;
        let mut mixed = false;
        loop {
            let received = self.receive(0).map_err(|error| refused(doing, &error))?;
            for part in messages(&received).filter(|part| part.sequence == sequence) {
                mixed |= part.flags & NLM_F_DUMP_INTR != 0;
                match part.kind {
                    NLMSG_DONE if mixed => return Err(KernelError::Interrupted(doing)),
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        return match error_of(&part) {
                            None => Ok(()),
                            Some((Errno::EINTR, _)) => Err(KernelError::Interrupted(doing)),
                            Some((errno, says)) => Err(KernelError::Refused { doing: doing.into(), errno, says }),
                        };
                    }
                    _ => {
                        let family = part.payload.first().copied().unwrap_or(0);
                        tell(family, part.payload.get(NFGEN_HEADER..).unwrap_or_default());
                    }
                }
            }
        }
    }

    /// Sends nf_tables messages as one transaction. No refusal: all of it is in force. Else none of it is.
    pub(crate) fn transact<'a>(&mut self, steps: impl ExactSizeIterator<Item = &'a Message>) -> Vec<Refusal> {
        self.drain();
        let count = u32::try_from(steps.len()).expect("a transaction is bounded by the send buffer");
        let first = self.sequence.next(steps.len() + 2);
        let mut datagram = Vec::new();
        write_header(&mut datagram, NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, first, 0, NFNL_SUBSYS_NFTABLES, &[]);
        for (step, sequence) in steps.zip(first + 1..) {
            step.write(&mut datagram, sequence, 0);
        }
        let last = first + count + 1;
        write_header(&mut datagram, NFNL_MSG_BATCH_END, NLM_F_REQUEST, last, 0, NFNL_SUBSYS_NFTABLES, &[]);
        let whole = |error: &io::Error| vec![Refusal { index: None, errno: errno_of(error), says: None }];
        if let Err(error) = self.socket.send(&datagram, 0) {
            return whole(&error);
        }
        let mut refusals = Vec::new();
        let mut overrun = false;
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(received) => refusals.extend(messages(&received).filter_map(|part| {
                    let (errno, says) = (part.kind == NLMSG_ERROR).then(|| error_of(&part))??;
                    let index = part.sequence.checked_sub(first + 1).filter(|index| *index < count);
                    Some(Refusal { index: index.map(|index| index as usize), errno, says })
                })),
                // Refusals that did not fit are lost; those that were read are true, and the rest comes with the next try.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && overrun && refusals.is_empty() => {
                    return whole(&io::Error::from(Errno::ENOBUFS));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return refusals,
                Err(error) if errno_of(&error) == Errno::ENOBUFS => overrun = true,
                Err(error) => return whole(&error),
            }
        }
    }

    fn receive(&self, flags: i32) -> io::Result<Vec<u8>> {
        let mut datagram = Vec::with_capacity(DATAGRAM_BYTES);
        loop {
            match self.socket.recv(&mut datagram, flags) {
                Ok(_) => return Ok(datagram),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Throws away what an earlier request left unread.
    fn drain(&self) {
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {}
            }
        }
    }
}

fn refused(doing: &str, error: &io::Error) -> KernelError {
    KernelError::Refused { doing: doing.into(), errno: errno_of(error), says: None }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

// === impl Message ===

impl Message {
    fn write(&self, to: &mut Vec<u8>, sequence: u32, more_flags: u16) {
        let flags = self.flags | NLM_F_REQUEST | more_flags;
        write_header(to, self.kind, flags, sequence, self.family, 0, &self.attrs.0);
    }
}

/// `nlmsghdr`, `nfgenmsg` and attributes.
pub(crate) fn write_header(
    to: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    res_id: u16,
    attrs: &[u8],
) {
    let len = u32::try_from(NLMSG_HEADER + NFGEN_HEADER + attrs.len()).expect("a message is split long before 4 GiB");
    to.extend_from_slice(&len.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(&flags.to_ne_bytes());
    to.extend_from_slice(&sequence.to_ne_bytes());
    to.extend_from_slice(&0_u32.to_ne_bytes());
    to.extend_from_slice(&[family, 0]);
    to.extend_from_slice(&res_id.to_be_bytes());
    to.extend_from_slice(attrs);
}

// === impl Attrs ===

impl Attrs {
    pub(crate) fn new() -> Attrs {
        Attrs::default()
    }

    pub(crate) fn bytes(&mut self, id: u16, value: &[u8]) -> &mut Attrs {
        self.header(id, value.len());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u8(&mut self, id: u16, value: u8) -> &mut Attrs {
        self.bytes(id, &[value])
    }

    pub(crate) fn u16(&mut self, id: u16, value: u16) -> &mut Attrs {
        self.bytes(id, &value.to_be_bytes())
    }

    pub(crate) fn u32(&mut self, id: u16, value: u32) -> &mut Attrs {
        self.bytes(id, &value.to_be_bytes())
    }

    pub(crate) fn u64(&mut self, id: u16, value: u64) -> &mut Attrs {
        self.bytes(id, &value.to_be_bytes())
    }

    /// With the NUL the kernel wants.
    pub(crate) fn str(&mut self, id: u16, value: &str) -> &mut Attrs {
        self.bytes(id, &[value.as_bytes(), &[0]].concat())
    }

    pub(crate) fn nest(&mut self, id: u16, inside: impl FnOnce(&mut Attrs)) -> &mut Attrs {
        let mut attrs = Attrs::new();
        inside(&mut attrs);
        self.bytes(id | NLA_F_NESTED, &attrs.0)
    }

    fn header(&mut self, id: u16, len: usize) {
        let len = u16::try_from(len + 4).expect("lists are split before an attribute outgrows 64 KiB");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&id.to_ne_bytes());
    }
}

/// Walks encoded attributes; what is malformed ends the walk.
pub(crate) fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let id = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((id, value))
    })
}

/// The first attribute with this number.
pub(crate) fn attr(bytes: &[u8], id: u16) -> Option<&[u8]> {
    attrs(bytes).find_map(|(found, value)| (found == id).then_some(value))
}

pub(crate) fn attr_u32(bytes: &[u8], id: u16) -> Option<u32> {
    Some(u32::from_be_bytes(*attr(bytes, id)?.first_chunk()?))
}

pub(crate) fn attr_u64(bytes: &[u8], id: u16) -> Option<u64> {
    Some(u64::from_be_bytes(*attr(bytes, id)?.first_chunk()?))
}

/// Without the NUL.
pub(crate) fn attr_str(bytes: &[u8], id: u16) -> Option<String> {
    let value = attr(bytes, id)?;
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(String::from_utf8_lossy(text).into_owned())
}

/// One message of a datagram.
struct Part<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..NLMSG_HEADER)?;
        let field = |at: usize| Some(u16::from_ne_bytes(*header.get(at..)?.first_chunk()?));
        let wide = |at: usize| Some(u32::from_ne_bytes(*header.get(at..)?.first_chunk()?));
        let len = usize::try_from(wide(0)?).ok()?;
        let part =
            Part { kind: field(4)?, flags: field(6)?, sequence: wide(8)?, payload: bytes.get(NLMSG_HEADER..len)? };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(part)
    })
}

/// The errno of an `NLMSG_ERROR`, with the kernel's words; none for an acknowledgement.
fn error_of(part: &Part<'_>) -> Option<(Errno, Option<String>)> {
    let code = i32::from_ne_bytes(*part.payload.first_chunk()?);
    if code == 0 {
        return None;
    }
    // nlmsgerr is the code, the header of the refused message and, unless capped, its payload; then attributes.
    let refused_len = part.payload.get(4..8).and_then(|len| len.first_chunk().map(|len| u32::from_ne_bytes(*len)));
    let skipped = if part.flags & NLM_F_CAPPED != 0 { NLMSG_HEADER } else { refused_len.unwrap_or(16) as usize };
    let told = part.payload.get(4 + skipped.next_multiple_of(4)..).unwrap_or_default();
    Some((Errno::from_raw(-code), attr_str(told, NLMSGERR_ATTR_MSG)))
}
