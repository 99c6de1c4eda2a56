//! Expressions of a rule as nf_tables attributes (`enum nft_*_attributes` of the kernel's uapi header).

use tartan_netstate::nft::{
    AddressSide, CmpOp, CtDirection, CtKey, Expr, MetaKey, NatKind, Nfproto, PayloadBase, Reg, Verdict,
};

use crate::nfnetlink::Attrs;

const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;
/// First of the sixteen 32-bit registers.
const NFT_REG32_00: u32 = 8;
const NFT_REG_VERDICT: u32 = 0;
const NFT_LOOKUP_F_INV: u32 = 1;
const NFT_RT_XFRM: u32 = 4;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_SADDR: u32 = 1;
const NFTA_FIB_F_DADDR: u32 = 2;
const IP_CT_DIR_ORIGINAL: u8 = 0;
const IP_CT_DIR_REPLY: u8 = 1;
const NFT_LIMIT_PKTS: u32 = 0;
const NFT_REJECT_TCP_RST: u32 = 1;
const NFT_REJECT_ICMPX_UNREACH: u32 = 2;
const NFT_REJECT_ICMPX_ADMIN_PROHIBITED: u8 = 3;
const NFT_DYNSET_OP_ADD: u32 = 0;
const NFTA_DYNSET_EXPR: u16 = 7;
pub(super) const NFTA_COUNTER_PACKETS: u16 = 2;
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 1 << 1;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;

/// Appends one element of a rule's expression list.
pub(super) fn write(list: &mut Attrs, expression: &Expr) {
    write_as(list, NFTA_LIST_ELEM, expression);
}

fn write_as(attrs: &mut Attrs, id: u16, expression: &Expr) {
    attrs.nest(id, |elem| {
        elem.str(NFTA_EXPR_NAME, name(expression));
        elem.nest(NFTA_EXPR_DATA, |data| body(data, expression));
    });
}

/// `NFTA_DATA_VALUE` in `id`.
pub(super) fn value(attrs: &mut Attrs, id: u16, bytes: &[u8]) {
    attrs.nest(id, |data| {
        data.bytes(NFTA_DATA_VALUE, bytes);
    });
}

fn name(expression: &Expr) -> &'static str {
    match expression {
        Expr::Meta { .. } | Expr::SetMark { .. } => "meta",
        Expr::Payload { .. } => "payload",
        Expr::Cmp { .. } => "cmp",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Lookup { .. } | Expr::VerdictMap { .. } => "lookup",
        Expr::FibType { .. } => "fib",
        Expr::Ipsec { .. } => "rt",
        Expr::Ct { .. } | Expr::SetCtMark { .. } => "ct",
        Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
        Expr::Notrack => "notrack",
        Expr::Counter => "counter",
        Expr::Count { .. } => "dynset",
        Expr::Limit { .. } => "limit",
        Expr::Log { .. } => "log",
        Expr::Reject { .. } => "reject",
        Expr::Nat { .. } => "nat",
        Expr::Masquerade { .. } => "masq",
    }
}

fn body(data: &mut Attrs, expression: &Expr) {
    match expression {
        Expr::Meta { key, dreg } => {
            data.u32(1, reg(*dreg)).u32(2, meta_key(*key));
        }
        Expr::Payload { base, offset, len, dreg } => {
            data.u32(1, reg(*dreg)).u32(2, payload_base(*base)).u32(3, *offset).u32(4, *len);
        }
        Expr::Cmp { sreg, op, data: to } => {
            data.u32(1, reg(*sreg)).u32(2, cmp_op(*op));
            value(data, 3, to);
        }
        Expr::SetMark { sreg } => {
            data.u32(2, meta_key(MetaKey::Mark)).u32(3, reg(*sreg));
        }
        Expr::Bitwise { sreg, dreg, mask, xor } => {
            let len = u32::try_from(mask.len()).expect("a register file has 64 bytes");
            data.u32(1, reg(*sreg)).u32(2, reg(*dreg)).u32(3, len);
            value(data, 4, mask);
            value(data, 5, xor);
        }
        Expr::Lookup { set, sreg, dreg, inverted } => {
            data.str(1, set).u32(2, reg(*sreg));
            if let Some(dreg) = dreg {
                data.u32(3, reg(*dreg));
            }
            if *inverted {
                data.u32(5, NFT_LOOKUP_F_INV);
            }
        }
        Expr::VerdictMap { map, sreg } => {
            data.str(1, map).u32(2, reg(*sreg)).u32(3, NFT_REG_VERDICT);
        }
        Expr::FibType { of, dreg } => {
            let flags = match of {
                AddressSide::Saddr => NFTA_FIB_F_SADDR,
                AddressSide::Daddr => NFTA_FIB_F_DADDR,
            };
            data.u32(1, reg(*dreg)).u32(2, NFT_FIB_RESULT_ADDRTYPE).u32(3, flags);
        }
        Expr::Ipsec { dreg } => {
            data.u32(1, reg(*dreg)).u32(2, NFT_RT_XFRM);
        }
        Expr::Ct { key, dreg } => {
            data.u32(1, reg(*dreg)).u32(2, ct_key(*key));
            let direction = match key {
                CtKey::OriginalProtoDst | CtKey::Saddr(CtDirection::Original, _) => Some(IP_CT_DIR_ORIGINAL),
                CtKey::Saddr(CtDirection::Reply, _) => Some(IP_CT_DIR_REPLY),
                CtKey::State | CtKey::Direction | CtKey::Status | CtKey::Mark => None,
            };
            if let Some(direction) = direction {
                data.u8(3, direction);
            }
        }
        Expr::SetCtMark { sreg } => {
            data.u32(2, ct_key(CtKey::Mark)).u32(4, reg(*sreg));
        }
        Expr::Immediate { dreg, data: constant } => {
            data.u32(1, reg(*dreg));
            value(data, 2, constant);
        }
        Expr::Notrack => {}
        Expr::Counter => {
            data.u64(1, 0).u64(NFTA_COUNTER_PACKETS, 0);
        }
        Expr::Count { set, sreg } => {
            data.str(1, set).u32(3, NFT_DYNSET_OP_ADD).u32(4, reg(*sreg));
            write_as(data, NFTA_DYNSET_EXPR, &Expr::Counter);
        }
        Expr::Limit { per_second, burst } => {
            data.u64(1, *per_second).u64(2, 1).u32(3, *burst).u32(4, NFT_LIMIT_PKTS).u32(5, 0);
        }
        Expr::Log { group, snaplen } => {
            data.u16(1, *group).u32(3, *snaplen);
        }
        Expr::Reject { tcp_reset: true } => {
            data.u32(1, NFT_REJECT_TCP_RST).u8(2, 0);
        }
        Expr::Reject { tcp_reset: false } => {
            data.u32(1, NFT_REJECT_ICMPX_UNREACH).u8(2, NFT_REJECT_ICMPX_ADMIN_PROHIBITED);
        }
        Expr::Nat { kind, nfproto, addr, port } => {
            data.u32(1, nat_kind(*kind)).u32(2, nfproto.number().into());
            data.u32(3, reg(*addr)).u32(4, reg(*addr));
            if let Some(port) = port {
                data.u32(5, reg(*port)).u32(6, reg(*port));
            }
        }
        Expr::Masquerade { ports } => {
            // Without the flag the kernel takes the registers and asks nothing of them.
            let specified = if ports.is_some() { NF_NAT_RANGE_PROTO_SPECIFIED } else { 0 };
            data.u32(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY | specified);
            if let Some([first, last]) = ports {
                data.u32(2, reg(*first)).u32(3, reg(*last));
            }
        }
        Expr::Verdict(verdict) => {
            data.u32(1, NFT_REG_VERDICT);
            data.nest(2, |inside| write_verdict(inside, verdict));
        }
    }
}

/// `NFTA_DATA_VERDICT`: what goes into a verdict register.
pub(super) fn write_verdict(attrs: &mut Attrs, verdict: &Verdict) {
    let (code, chain): (i32, _) = match verdict {
        Verdict::Continue => (-1, None),
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    attrs.nest(NFTA_DATA_VERDICT, |inside| {
        inside.u32(NFTA_VERDICT_CODE, code.cast_unsigned());
        if let Some(chain) = chain {
            inside.str(NFTA_VERDICT_CHAIN, chain);
        }
    });
}

fn reg(reg: Reg) -> u32 {
    NFT_REG32_00 + u32::from(reg.0)
}

fn meta_key(key: MetaKey) -> u32 {
    match key {
        MetaKey::Iifname => 6,
        MetaKey::Oifname => 7,
        MetaKey::Nfproto => 15,
        MetaKey::L4proto => 16,
        MetaKey::Iifgroup => 21,
        MetaKey::Oifgroup => 22,
        MetaKey::Mark => 3,
    }
}

fn payload_base(base: PayloadBase) -> u32 {
    match base {
        PayloadBase::Network => 1,
        PayloadBase::Transport => 2,
    }
}

fn cmp_op(op: CmpOp) -> u32 {
    match op {
        CmpOp::Eq => 0,
        CmpOp::Neq => 1,
    }
}

fn ct_key(key: CtKey) -> u32 {
    match key {
        CtKey::State => 0,
        CtKey::Direction => 1,
        CtKey::Status => 2,
        CtKey::Mark => 3,
        CtKey::OriginalProtoDst => 12,
        CtKey::Saddr(_, Nfproto::Ipv4) => 19,
        CtKey::Saddr(_, Nfproto::Ipv6) => 21,
    }
}

fn nat_kind(kind: NatKind) -> u32 {
    match kind {
        NatKind::Snat => 0,
        NatKind::Dnat => 1,
    }
}
