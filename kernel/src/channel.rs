//! A blocking netlink socket for messages that are made by hand: of generic netlink, and of XFRM.
//!
//! Invariant: a dump is whole or an error. A socket stays in the network namespace of the thread that opened it.

use netlink_sys::Socket;
use nix::errno::Errno;

use crate::KernelError;
use crate::netlink::{NLM_F_DUMP_INTR, Refusal, Sequence, parts, receive, to_the_kernel};
use crate::nfnetlink::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};

/// Acknowledgements of a batch must fit.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// Requests in one `send`.
const BATCH: usize = 256;
/// More than the kernel puts into one datagram.
const DATAGRAM_BYTES: usize = 64 << 10;
const NLMSG_HEADER: usize = 16;

/// See the module.
pub(crate) struct Channel {
    socket: Socket,
    port: u32,
    sequence: Sequence,
    buffer: Vec<u8>,
}

/// One request; flags beside `NLM_F_REQUEST` and `NLM_F_ACK`.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) payload: Vec<u8>,
}

impl Channel {
    /// In the network namespace of the calling thread.
    pub(crate) fn open(protocol: isize) -> Result<Channel, KernelError> {
        let opened = to_the_kernel(protocol, RECEIVE_BUFFER_BYTES);
        let (socket, port) = opened.map_err(|error| Refusal::of(&error).doing("open a netlink socket"))?;
        Ok(Channel { socket, port, sequence: Sequence::default(), buffer: Vec::with_capacity(DATAGRAM_BYTES) })
    }

    /// The socket's port: notifications that carry it tell of our own requests.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Carries out requests in order. One result each; a refused one does not stop those after it.
    pub(crate) fn batch(&mut self, requests: &[Message]) -> Vec<Result<(), Refusal>> {
        requests.chunks(BATCH).flat_map(|chunk| self.send_chunk(chunk)).collect()
    }

    fn send_chunk(&mut self, requests: &[Message]) -> Vec<Result<(), Refusal>> {
        let first = self.sequence.next(requests.len());
        let mut datagram = Vec::new();
        for (sequence, message) in (first..).zip(requests) {
            message.append(&mut datagram, NLM_F_ACK, sequence, self.port);
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

    /// Asks for a list, or for one object: the payload of each message of the answer.
    pub(crate) fn ask(&mut self, request: &Message) -> Result<Vec<Vec<u8>>, Refusal> {
        let sequence = self.sequence.next(1);
        let mut datagram = Vec::new();
        let ack = if request.flags & NLM_F_DUMP == NLM_F_DUMP { 0 } else { NLM_F_ACK };
        request.append(&mut datagram, ack, sequence, self.port);
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
                    None => answers.push(part.payload().to_vec()),
                }
            }
        }
    }
}

impl Message {
    /// With the port of its socket: XFRM takes who asks from there, and says so to those who listen.
    fn append(&self, to: &mut Vec<u8>, ack: u16, sequence: u32, port: u32) {
        let length = u32::try_from(NLMSG_HEADER + self.payload.len()).expect("a request is small");
        to.extend_from_slice(&length.to_ne_bytes());
        to.extend_from_slice(&self.kind.to_ne_bytes());
        to.extend_from_slice(&(self.flags | ack | NLM_F_REQUEST).to_ne_bytes());
        to.extend_from_slice(&sequence.to_ne_bytes());
        to.extend_from_slice(&port.to_ne_bytes());
        to.extend_from_slice(&self.payload);
        to.resize(to.len().next_multiple_of(4), 0);
    }
}
