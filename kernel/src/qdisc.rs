//! Token buckets on the wire (`struct tc_tbf_qopt` of linux/pkt_sched.h).
//!
//! Invariant: a qdisc is ours if it is at the root, is a tbf and has our handle.

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NLM_F_REPLACE, Nla, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use tartan_netstate::Tbf;
use tartan_netstate::claims::QDISC_HANDLE;

use crate::netlink::Request;

const KIND: &str = "tbf";
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
/// Where the parts of `tc_tbf_qopt` are: two `tc_ratespec`, whose last field is the rate, then limit, buffer, MTU.
const LINKLAYER: usize = 1;
const RATE: usize = 8;
const LIMIT: usize = 24;
const BUFFER: usize = 28;
const PARMS: usize = 36;
/// No rate table is needed then.
const TC_LINKLAYER_ETHERNET: u8 = 1;

pub(crate) fn put(index: u32, tbf: Tbf) -> Request {
    let mut parms = vec![0; PARMS];
    parms[LINKLAYER] = TC_LINKLAYER_ETHERNET;
    for (at, value) in [(RATE, u32::try_from(tbf.rate).unwrap_or(u32::MAX)), (LIMIT, tbf.limit), (BUFFER, tbf.buffer)] {
        parms[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    let mut options = vec![DefaultNla::new(TCA_TBF_PARMS, parms)];
    if tbf.rate > u64::from(u32::MAX) {
        options.push(DefaultNla::new(TCA_TBF_RATE64, tbf.rate.to_ne_bytes().to_vec()));
    }
    let mut nested = vec![0; options.as_slice().buffer_len()];
    options.as_slice().emit(&mut nested);
    let mut message = at_root(index);
    let options = TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, nested));
    message.attributes = vec![TcAttribute::Kind(KIND.into()), options];
    Request { message: RouteNetlinkMessage::NewQueueDiscipline(message), flags: NLM_F_CREATE | NLM_F_REPLACE }
}

pub(crate) fn delete(index: u32) -> Request {
    Request { message: RouteNetlinkMessage::DelQueueDiscipline(at_root(index)), flags: 0 }
}

/// Asks for all qdiscs.
pub(crate) fn list() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default())
}

fn at_root(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    (message.header.handle, message.header.parent) = (TcHandle::from(QDISC_HANDLE), TcHandle::ROOT);
    message
}

/// Number of the link, and its limit, if that is ours.
pub(crate) fn decode(message: &TcMessage) -> Option<(u32, Tbf)> {
    let header = &message.header;
    let is_ours = header.handle == TcHandle::from(QDISC_HANDLE) && header.parent == TcHandle::ROOT;
    let is_tbf = message.attributes.iter().any(|it| matches!(it, TcAttribute::Kind(kind) if kind == KIND));
    if !is_ours || !is_tbf {
        return None;
    }
    let (mut tbf, mut rate64) = (None, None);
    for option in NlasIterator::new(&options(message)?) {
        let option = option.ok()?;
        let value = option.value();
        let number = |at: usize| Some(u32::from_ne_bytes(value.get(at..at + 4)?.try_into().ok()?));
        match option.kind() {
            TCA_TBF_PARMS => {
                tbf = Some(Tbf { rate: number(RATE)?.into(), buffer: number(BUFFER)?, limit: number(LIMIT)? });
            }
            TCA_TBF_RATE64 => rate64 = Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?)),
            _ => {}
        }
    }
    let tbf = tbf?;
    Some((header.index.cast_unsigned(), Tbf { rate: rate64.unwrap_or(tbf.rate), ..tbf }))
}

/// Of a kind that it does not know, the decoder gives the options as they are, all in one.
fn options(message: &TcMessage) -> Option<Vec<u8>> {
    let options = message.attributes.iter().find_map(|it| match it {
        TcAttribute::Options(options) => options.first(),
        _ => None,
    });
    let TcOption::Other(options) = options? else { return None };
    let mut value = vec![0; options.value_len()];
    options.emit_value(&mut value);
    Some(value)
}
