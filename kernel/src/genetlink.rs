//! A blocking generic netlink socket (the kernel's Documentation/userspace-api/netlink/intro.rst): families are found by name,
//! requests go many in one `send`.
//!
//! Invariant: integers in attributes are the machine's own way round, unlike nfnetlink's.
//!
//! A socket stays in the network namespace of the thread that opened it.

use netlink_sys::{Socket, protocols::NETLINK_GENERIC};
use nix::errno::Errno;

use crate::KernelError;
use crate::netlink::{NLM_F_DUMP_INTR, Refusal, Sequence, parts, receive, to_the_kernel};
use crate::nfnetlink::{Attrs, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, attr};

/// Acknowledgements of a batch must fit.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// Requests in one `send`.
const BATCH: usize = 256;
/// More than the kernel puts into one datagram.
const DATAGRAM_BYTES: usize = 64 << 10;
/// `nlmsghdr` and `genlmsghdr`.
const HEADERS: usize = 16 + GENL_HEADER;
const GENL_HEADER: usize = 4;
/// The family that tells the others' numbers.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// One family, spoken to over a socket of its own.
pub(crate) struct Genetlink {
    socket: Socket,
    family: u16,
    version: u8,
    sequence: Sequence,
    buffer: Vec<u8>,
}

impl Genetlink {
    /// The family of that name, in the network namespace of the calling thread; none where the kernel has no such family, of
    /// which it loads the module if it finds one.
    pub(crate) fn open(name: &str, version: u8) -> Result<Option<Genetlink>, KernelError> {
        let opened = to_the_kernel(NETLINK_GENERIC, RECEIVE_BUFFER_BYTES);
        let (socket, _) = opened.map_err(|error| Refusal::of(&error).doing("open a generic netlink socket"))?;
        let buffer = Vec::with_capacity(DATAGRAM_BYTES);
        let mut control = Genetlink { socket, family: GENL_ID_CTRL, version: 1, sequence: Sequence::default(), buffer };
        let mut named = Attrs::new();
        named.str(CTRL_ATTR_FAMILY_NAME, name);
        let answers = match control.ask(CTRL_CMD_GETFAMILY, 0, &named) {
            Err(Refusal { errno: Errno::ENOENT, .. }) => return Ok(None),
            Err(refusal) => return Err(refusal.doing(format!("find the netlink family {name}"))),
            Ok(answers) => answers,
        };
        let id = answers.iter().find_map(|answer| attr(answer, CTRL_ATTR_FAMILY_ID)?.first_chunk().copied());
        Ok(id.map(|id| Genetlink { family: u16::from_ne_bytes(id), version, ..control }))
    }

    /// Asks for a list: the attributes of each message of the answer.
    pub(crate) fn dump(&mut self, command: u8, attrs: &Attrs) -> Result<Vec<Vec<u8>>, Refusal> {
        self.ask(command, NLM_F_DUMP, attrs)
    }

    /// Carries out requests of one command in order. One result each; a refused one does not stop those after it.
    pub(crate) fn batch(&mut self, command: u8, requests: &[Attrs]) -> Vec<Result<(), Refusal>> {
        requests.chunks(BATCH).flat_map(|chunk| self.send_chunk(command, chunk)).collect()
    }

    fn send_chunk(&mut self, command: u8, requests: &[Attrs]) -> Vec<Result<(), Refusal>> {
        let first = self.sequence.next(requests.len());
        let mut datagram = Vec::new();
        for (sequence, attrs) in (first..).zip(requests) {
            self.append(&mut datagram, command, NLM_F_ACK, sequence, attrs);
        }
        let mut results: Vec<Option<Result<(), Refusal>>> = vec![None; requests.len()];
        let mut unknown = self.socket.send(&datagram, 0).err();
        while unknown.is_none() && results.iter().any(Option::is_none) {
            unknown = receive(&self.socket, &mut self.buffer, 0).err();
            for part in parts(&self.buffer) {
                let at = part.sequence.wrapping_sub(first) as usize;
                if let (Some(result), Some(told)) = (results.get_mut(at), part.acknowledgement()) {
                    *result = Some(told);
                }
            }
        }
        let lost = unknown.unwrap_or_else(|| Errno::EIO.into());
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(Refusal::of(&lost)))).collect()
    }

    fn ask(&mut self, command: u8, flags: u16, attrs: &Attrs) -> Result<Vec<Vec<u8>>, Refusal> {
        let sequence = self.sequence.next(1);
        let mut datagram = Vec::new();
        let ack = if flags & NLM_F_DUMP == NLM_F_DUMP { 0 } else { NLM_F_ACK };
        self.append(&mut datagram, command, flags | ack, sequence, attrs);
        self.socket.send(&datagram, 0).map_err(|error| Refusal::of(&error))?;
        let (mut answers, mut mixed) = (Vec::new(), false);
        loop {
            receive(&self.socket, &mut self.buffer, 0).map_err(|error| Refusal::of(&error))?;
            for part in parts(&self.buffer).filter(|part| part.sequence == sequence) {
                mixed |= part.flags & NLM_F_DUMP_INTR != 0;
                match part.end() {
                    Some(Ok(())) if mixed => return Err(Refusal { errno: Errno::EINTR, says: None }),
                    Some(Ok(())) => return Ok(answers),
                    Some(Err(refusal)) => return Err(refusal),
                    None => answers.push(part.payload().get(GENL_HEADER..).unwrap_or_default().to_vec()),
                }
            }
        }
    }

    fn append(&self, to: &mut Vec<u8>, command: u8, flags: u16, sequence: u32, attrs: &Attrs) {
        let length = u32::try_from(HEADERS + attrs.0.len()).expect("a request is small");
        to.extend_from_slice(&length.to_ne_bytes());
        to.extend_from_slice(&self.family.to_ne_bytes());
        to.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        to.extend_from_slice(&sequence.to_ne_bytes());
        to.extend_from_slice(&0_u32.to_ne_bytes());
        to.extend_from_slice(&[command, self.version, 0, 0]);
        to.extend_from_slice(&attrs.0);
    }
}

/// Numbers the machine's own way round.
pub(crate) fn number(value: &[u8]) -> Option<u64> {
    Some(match value.len() {
        1 => u64::from(value[0]),
        2 => u64::from(u16::from_ne_bytes(*value.first_chunk()?)),
        4 => u64::from(u32::from_ne_bytes(*value.first_chunk()?)),
        8 => u64::from_ne_bytes(*value.first_chunk()?),
        _ => return None,
    })
}
