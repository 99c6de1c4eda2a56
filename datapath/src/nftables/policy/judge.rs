//! How one packet is judged by one pod's policies: a few lookups in one rule, then the same again for what does not
//! simply pass.
//!
//! Each rule makes all of its lookups itself, and is worth something only if all were of one state of the maps
//! ([`tartan_netstate::epoch`]). When they go over to the next one meanwhile, rules after it judge; there are enough for that,
//! whichever it was.
//!
//! A rule cannot hand a register to the next one, and `nft` cannot list a rule in which one lookup's result goes into
//! another. So each result goes through the packet's mark, whose own value waits in a register, and a rule that needs to
//! know more begins from the packet again.
//!
//! Invariants: whatever goes on as it was has the mark it came with, so that what may find nothing is looked for before
//! the mark is written, or after it was given back; the chain ends in a drop, so that nothing passes that no word lets pass.

use tartan_netstate::nft::{CmpOp, CtKey, Expr, MetaKey, Nfproto, Reg, Rule, RuleBuilder, Selector, Verdict, rule};

use super::Mode;
use super::maps::{ADDRESSES, EPOCH, FINAL, JUDGED, PASS, RANGES, REPORTED, SUBJECTS, Way};
use tartan_netstate::claims::NFLOG_GROUP;
use tartan_policy::verdicts;

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
/// The key is worth nothing any more by then.
const ANY_WORD: Reg = Reg(12);
/// The number of the state in which the rule began.
const STATE: Reg = Reg(14);
const MARK: Reg = Reg(15);

/// Whose row is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Of an address that is listed by itself.
    Listed,
    /// Of the range around one that is not.
    Around,
}

/// Which word decides.
#[derive(Clone, Copy)]
enum Word {
    /// The identity's own.
    Own,
    /// Anyone's, where there is none of its own.
    Anyones,
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
    let of = [
        ("this address", Whose::Listed, Word::Own),
        ("anyone, address known", Whose::Listed, Word::Anyones),
        ("the range around it", Whose::Around, Word::Own),
        ("anyone, address not known", Whose::Around, Word::Anyones),
    ];
    let act = |begins: &str, (on, whose, word)| packets.act(&format!("{begins} {on}"), whose, word);
    let mut rules = vec![
        packets.pass("allowed, address known", Whose::Listed),
        packets.pass("allowed, address not known", Whose::Around),
    ];
    for (on, whose, word) in of {
        rules.push(packets.report(&format!("passes, {on}"), whose, word));
        rules.push(act("verdict on", (on, whose, word)));
    }
    // Policy has changed among these.
    rules.extend(of.map(|these| act("again, on", these)));
    rules.push(otherwise);
    rules
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
        let known = of_one_state(self.anyones_word(self.own_word(begun)));
        let counted = |rule: RuleBuilder, word| rule.then(Expr::Count { set: JUDGED.into(), sreg: word });
        // The word that decides, whatever it says: where its own is none, that is counted as 0, and then anyone's.
        let own = verdict(counted(known, OWN_WORD), OWN_WORD, PASS);
        verdict(counted(own, ANY_WORD), ANY_WORD, PASS).build()
    }

    /// What will pass by this word is reported, if it is to be.
    fn report(self, comment: &str, whose: Whose, word: Word) -> Rule {
        let (known, word) = self.word(rule(comment), whose, word);
        let these = verdict(known, word, REPORTED).limit(REPORTS.0, REPORTS.1);
        told(these.then(Expr::SetMark { sreg: word })).then(Expr::SetMark { sreg: MARK }).build()
    }

    /// What becomes of it by this word; none: the next rule knows.
    fn act(self, comment: &str, whose: Whose, word: Word) -> Rule {
        let (known, word) = self.word(rule(comment), whose, word);
        let known = known
            .then(Expr::Cmp { sreg: word, op: CmpOp::Neq, data: vec![0; 4] })
            // Whoever ends it reports it, by this mark.
            .then(Expr::SetMark { sreg: word });
        verdict(known, word, FINAL).then(Expr::SetMark { sreg: MARK }).then(Expr::Verdict(Verdict::Return)).build()
    }

    /// The word, and where it is.
    fn word(self, rule: RuleBuilder, whose: Whose, word: Word) -> (RuleBuilder, Reg) {
        let own = self.own_word(self.subject_and_class(self.identity(rule, whose)));
        match word {
            Word::Own => (of_one_state(own), OWN_WORD),
            Word::Anyones => {
                let without_own = Expr::Cmp { sreg: OWN_WORD, op: CmpOp::Eq, data: vec![0; 4] };
                (of_one_state(self.anyones_word(own)).then(without_own), ANY_WORD)
            }
        }
    }

    fn begin(self, rule: RuleBuilder) -> RuleBuilder {
        // The chain has no packets of the other family; nft names addresses only where it sees that.
        let begun = rule.nfproto(self.nfproto).then(Expr::Meta { key: MetaKey::Mark, dreg: MARK });
        // The number is at 0.
        let asked = begun.then(Expr::Bitwise { sreg: MARK, dreg: KEY, mask: vec![0; 4], xor: vec![0; 4] });
        carried(looked_up(asked, EPOCH, KEY), &[STATE]).then(Expr::SetMark { sreg: MARK })
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
        let asked = carried(subject, &[OWN_KEY[0], ANY_KEY[0], CLASS_KEY[0]]).then(Expr::SetMark { sreg: MARK });
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

/// Goes on, with the packet's own mark, if the state is the one in which the rule began.
fn of_one_state(rule: RuleBuilder) -> RuleBuilder {
    let asked = looked_up(rule.then(Expr::SetMark { sreg: MARK }), EPOCH, STATE);
    carried(asked, &[]).then(Expr::SetMark { sreg: MARK })
}

/// What was looked up, by way of the mark.
fn carried(rule: RuleBuilder, to: &[Reg]) -> RuleBuilder {
    let through = rule.then(Expr::SetMark { sreg: KEY });
    to.iter().fold(through, |rule, dreg| rule.then(Expr::Meta { key: MetaKey::Mark, dreg: *dreg }))
}

fn verdict(rule: RuleBuilder, word: Reg, map: &str) -> RuleBuilder {
    let (mask, xor) = (verdicts::Word::VERDICT_BITS.to_ne_bytes().to_vec(), vec![0; 4]);
    rule.then(Expr::Bitwise { sreg: word, dreg: KEY, mask, xor }).then(Expr::VerdictMap { map: map.into(), sreg: KEY })
}
