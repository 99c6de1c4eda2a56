//! What rules report by NFLOG, as far as tests ask: the marks of packets, in order.

use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use tartan_netstate::claims::NFLOG_GROUP;

use super::Netns;

const NFNL_SUBSYS_ULOG: u16 = 4;
const NFULNL_MSG_PACKET: u16 = 0;
const NFULNL_MSG_CONFIG: u16 = 1;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_CFG_QTHRESH: u16 = 5;
const NFULNL_CFG_CMD_BIND: u8 = 1;
const NFULNL_COPY_PACKET: u8 = 2;
const NFULA_MARK: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;

/// Who listens to our group in one namespace.
pub struct Reports(Socket);

impl Reports {
    /// Listens from now on.
    pub fn of(netns: &Netns) -> Reports {
        netns.run(|| {
            let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
            socket.bind_auto().unwrap();
            socket.connect(&SocketAddr::new(0, 0)).unwrap();
            for attr in [
                attr(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND]),
                attr(NFULA_CFG_MODE, &[0, 0, 0, 128, NFULNL_COPY_PACKET, 0]),
                attr(NFULA_CFG_QTHRESH, &1_u32.to_be_bytes()),
            ] {
                let mut message = Vec::new();
                message.extend_from_slice(&u32::try_from(20 + attr.len()).unwrap().to_ne_bytes());
                message.extend_from_slice(&(NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG).to_ne_bytes());
                message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
                message.extend_from_slice(&[0; 10]);
                message.extend_from_slice(&NFLOG_GROUP.to_be_bytes());
                message.extend_from_slice(&attr);
                socket.send(&message, 0).unwrap();
                let mut answer = Vec::with_capacity(4096);
                socket.recv(&mut answer, 0).unwrap();
                assert_eq!(answer[16..20], [0; 4], "the kernel refuses to report");
            }
            let patience = TimeVal::new(0, i64::try_from(Duration::from_millis(500).as_micros()).unwrap());
            setsockopt(&socket, ReceiveTimeout, &patience).unwrap();
            Reports(socket)
        })
    }

    /// The mark of the next packet that is reported; none if there is none for a while.
    pub fn next(&self) -> Option<u32> {
        let mut datagram = Vec::with_capacity(1 << 16);
        self.0.recv(&mut datagram, 0).ok()?;
        let kind = u16::from_ne_bytes(datagram[4..6].try_into().unwrap());
        assert_eq!(kind, NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET);
        let mut attrs = &datagram[20..];
        while attrs.len() >= 4 {
            let len = usize::from(u16::from_ne_bytes(attrs[..2].try_into().unwrap()));
            if u16::from_ne_bytes(attrs[2..4].try_into().unwrap()) == NFULA_MARK {
                return Some(u32::from_be_bytes(attrs[4..8].try_into().unwrap()));
            }
            attrs = attrs.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        panic!("a packet without a mark")
    }
}

fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len() + 4).unwrap();
    let mut attr = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attr.extend_from_slice(value);
    attr.resize(attr.len().next_multiple_of(4), 0);
    attr
}
