//! How one packet is judged by one pod's policies: a few lookups in one rule, then the same again for what does not
//! simply pass.
//!
//! A rule cannot hand a register to the next one, and `nft` cannot list a rule in which one lookup's result goes into
//! another. So each result goes through the packet's mark, whose own value waits in a register, and a rule that needs to
//! know more begins from the packet again.
//!
//! Invariants: whatever goes on as it was has the mark it came with, so that what may find nothing is looked for before
//! the mark is written, or after it was given back; the chain ends in a drop, so that nothing passes that no word lets pass.

use tartan_netstate::nft::{CmpOp, CtKey, Expr, MetaKey, Nfproto, Reg, Rule, RuleBuilder, Selector, Verdict, rule};

use super::Mode;
use super::maps::{ADDRESSES, FINAL, JUDGED, PASS, RANGES, REPORTED, SUBJECTS, VERDICT_BITS, Way};
use tartan_netstate::claims::NFLOG_GROUP;

/// Bytes of a packet that a listener gets: enough for all headers that flows are made of.
const SNAPLEN: u32 = 128;
/// Reports of one rule in a second, at most and on average, and how many may come at once.
pub(super) const REPORTS: (u64, u32) = (100, 100);

/// Keys of lookups begin here; a lookup's result comes here, too.
const KEY: Reg = Reg(0);
/// `set . protocol . destination`.
const CLASS_KEY: [Reg; 3] = [Reg(4), Reg(5), Reg(6)];
/// `set . identity . class`.
const OWN_KEY: [Reg; 3] = [Reg(8), Reg(9), Reg(10)];
const OWN_WORD: Reg = Reg(11);
/// `set . class`.
const ANY_KEY: [Reg; 2] = [Reg(12), Reg(13)];
const ANY_WORD: Reg = Reg(14);
const MARK: Reg = Reg(15);

/// Whose row is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Of an address that is listed by itself.
    Listed,
    /// Of the range around one that is not.
    Around,
    /// Of all that have no row of their own.
    Anyone,
}

/// Packets of which a chain judges.
#[derive(Clone, Copy)]
pub(super) struct Packets {
    pub(super) way: Way,
    pub(super) nfproto: Nfproto,
    /// Of ICMP, type and code are what ports are to others.
    pub(super) icmp: bool,
}

/// A chain that returns what passes.
pub(super) fn chain(packets: Packets, mode: Mode) -> Vec<Rule> {
    let otherwise = match mode {
        Mode::Enforce => rule("nothing is known of this pod").counter().drop(),
        Mode::Audit | Mode::Off => rule("nothing is known of this pod").counter().returns(),
    };
    vec![
        packets.pass("allowed, address known", Whose::Listed),
        packets.pass("allowed, address not known", Whose::Around),
        packets.report("passes, this address", Whose::Listed),
        packets.act("verdict on this address", Whose::Listed),
        packets.report("passes, the range around it", Whose::Around),
        packets.act("verdict on the range around it", Whose::Around),
        packets.report("passes, anyone", Whose::Anyone),
        packets.act("verdict on anyone", Whose::Anyone),
        otherwise,
    ]
}

// === impl Packets ===

impl Packets {
    /// The chain of these packets.
    pub(super) fn chain(self) -> String {
        format!("{}{}{}", self.way.chain(), self.nfproto.suffix(), if self.icmp { "_icmp" } else { "" })
    }

    /// Allowed by its own word, or, without one, by anyone's.
    fn pass(self, comment: &str, whose: Whose) -> Rule {
        let begun = self.subject_and_class(self.identity(rule(comment), whose));
        let known = self.anyones_word(self.own_word(begun)).then(Expr::SetMark { sreg: MARK });
        let counted = |rule: RuleBuilder, word| rule.then(Expr::Count { set: JUDGED.into(), sreg: word });
        // The word that decides, whatever it says: where its own is none, that is counted as 0, and then anyone's.
        let own = verdict(counted(known, OWN_WORD), OWN_WORD, PASS);
        verdict(counted(own, ANY_WORD), ANY_WORD, PASS).build()
    }

    /// What will pass by this word is reported, if it is to be.
    fn report(self, comment: &str, whose: Whose) -> Rule {
        let (known, word) = self.word(rule(comment), whose);
        let these = verdict(known.then(Expr::SetMark { sreg: MARK }), word, REPORTED).limit(REPORTS.0, REPORTS.1);
        told(these.then(Expr::SetMark { sreg: word })).then(Expr::SetMark { sreg: MARK }).build()
    }

    /// What becomes of it by this word; none: the next rule knows.
    fn act(self, comment: &str, whose: Whose) -> Rule {
        let (known, word) = self.word(rule(comment), whose);
        let known = known
            .then(Expr::SetMark { sreg: MARK })
            .then(Expr::Cmp { sreg: word, op: CmpOp::Neq, data: vec![0; 4] })
            // Whoever ends it reports it, by this mark.
            .then(Expr::SetMark { sreg: word });
        verdict(known, word, FINAL).then(Expr::SetMark { sreg: MARK }).then(Expr::Verdict(Verdict::Return)).build()
    }

    /// The word, and where it is.
    fn word(self, rule: RuleBuilder, whose: Whose) -> (RuleBuilder, Reg) {
        match whose {
            Whose::Anyone => (self.anyones_word(self.subject_and_class(self.begin(rule))), ANY_WORD),
            _ => (self.own_word(self.subject_and_class(self.identity(rule, whose))), OWN_WORD),
        }
    }

    fn begin(self, rule: RuleBuilder) -> RuleBuilder {
        // The chain has no packets of the other family; nft names addresses only where it sees that.
        rule.nfproto(self.nfproto).then(Expr::Meta { key: MetaKey::Mark, dreg: MARK })
    }

    /// Goes on only for addresses that are listed, or that are not.
    fn identity(self, rule: RuleBuilder, whose: Whose) -> RuleBuilder {
        let [_, _, remote] = self.way.ends();
        let ask = |rule: RuleBuilder, map: &str| {
            let asked = rule.then(remote.load(self.nfproto, KEY));
            carried(looked_up(asked, &self.named(map), KEY), &[OWN_KEY[1]])
        };
        let op = if whose == Whose::Listed { CmpOp::Neq } else { CmpOp::Eq };
        let listed = ask(self.begin(rule), ADDRESSES).then(Expr::SetMark { sreg: MARK }).then(Expr::Cmp {
            sreg: OWN_KEY[1],
            op,
            data: vec![0; 4],
        });
        match whose {
            Whose::Listed => listed,
            _ => ask(listed, RANGES).then(Expr::SetMark { sreg: MARK }),
        }
    }

    fn subject_and_class(self, rule: RuleBuilder) -> RuleBuilder {
        let [link, own, _] = self.way.ends();
        let asked = rule
            .then(link.load(self.nfproto, KEY))
            .then(own.load(self.nfproto, Reg(KEY.0 + link.registers(self.nfproto))));
        let subject = looked_up(asked, &self.named(SUBJECTS), KEY)
            .then(Selector::L4proto.load(self.nfproto, CLASS_KEY[1]))
            .then(self.destination());
        let asked = carried(subject, &[OWN_KEY[0], ANY_KEY[0], CLASS_KEY[0]]);
        carried(looked_up(asked, &self.way.side.classes(), CLASS_KEY[0]), &[OWN_KEY[2], ANY_KEY[1]])
    }

    /// As the connection's first packet had it, but after its destination was translated.
    fn destination(self) -> Expr {
        match (self.icmp, self.way.back) {
            (true, true) => Expr::Ct { key: CtKey::OriginalProtoDst, dreg: CLASS_KEY[2] },
            (true, false) | (false, true) => Selector::Sport.load(self.nfproto, CLASS_KEY[2]),
            (false, false) => Selector::Dport.load(self.nfproto, CLASS_KEY[2]),
        }
    }

    fn own_word(self, rule: RuleBuilder) -> RuleBuilder {
        carried(looked_up(rule, &self.way.side.words(), OWN_KEY[0]), &[OWN_WORD])
    }

    fn anyones_word(self, rule: RuleBuilder) -> RuleBuilder {
        carried(looked_up(rule, &self.way.side.any(), ANY_KEY[0]), &[ANY_WORD])
    }

    fn named(self, stem: &str) -> String {
        format!("{stem}{}", self.nfproto.suffix())
    }
}

/// Tells whoever listens.
pub(super) fn told(rule: RuleBuilder) -> RuleBuilder {
    rule.then(Expr::Log { group: NFLOG_GROUP, snaplen: SNAPLEN })
}

fn looked_up(rule: RuleBuilder, map: &str, key: Reg) -> RuleBuilder {
    rule.then(Expr::Lookup { set: map.into(), sreg: key, dreg: Some(KEY), inverted: false })
}

/// What was looked up, by way of the mark.
fn carried(rule: RuleBuilder, to: &[Reg]) -> RuleBuilder {
    let through = rule.then(Expr::SetMark { sreg: KEY });
    to.iter().fold(through, |rule, dreg| rule.then(Expr::Meta { key: MetaKey::Mark, dreg: *dreg }))
}

fn verdict(rule: RuleBuilder, word: Reg, map: &str) -> RuleBuilder {
    let (mask, xor) = (VERDICT_BITS.to_ne_bytes().to_vec(), vec![0; 4]);
    rule.then(Expr::Bitwise { sreg: word, dreg: KEY, mask, xor }).then(Expr::VerdictMap { map: map.into(), sreg: KEY })
}
