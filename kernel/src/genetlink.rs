//! Generic netlink (the kernel's Documentation/userspace-api/netlink/intro.rst): families are found by name.
//!
//! Invariant: integers in attributes are the machine's own way round, unlike nfnetlink's.

use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use crate::KernelError;
use crate::channel::{Channel, Message};
use crate::netlink::Refusal;
use crate::nfnetlink::{Attrs, NLM_F_DUMP, attr};

const GENL_HEADER: usize = 4;
/// The family that tells the others' numbers.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// One family, spoken to over a socket of its own.
pub(crate) struct Genetlink {
    channel: Channel,
    family: u16,
    version: u8,
}

impl Genetlink {
    /// The family of that name, in the network namespace of the calling thread; none where the kernel has no such family, of
    /// which it loads the module if it finds one.
    pub(crate) fn open(name: &str, version: u8) -> Result<Option<Genetlink>, KernelError> {
        let channel = Channel::open(NETLINK_GENERIC)?;
        let mut control = Genetlink { channel, family: GENL_ID_CTRL, version: 1 };
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
        let messages: Vec<Message> = requests.iter().map(|attrs| self.message(command, 0, attrs)).collect();
        self.channel.batch(&messages)
    }

    fn ask(&mut self, command: u8, flags: u16, attrs: &Attrs) -> Result<Vec<Vec<u8>>, Refusal> {
        let answers = self.channel.ask(&self.message(command, flags, attrs))?;
        Ok(answers.into_iter().map(|answer| answer.get(GENL_HEADER..).unwrap_or_default().to_vec()).collect())
    }

    fn message(&self, command: u8, flags: u16, attrs: &Attrs) -> Message {
        let payload = [&[command, self.version, 0, 0], &attrs.0[..]].concat();
        Message { kind: self.family, flags, payload }
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
