//! What a datapath's maps say of packets, as one number: what becomes of them, and by which rule.
//!
//! ```text
//! bits 30       26 to 24  23 to 0
//!      logged   verdict   rule
//! ```
//!
//! All other bits are 0. Invariant: a word is not 0, which stands for none.

use crate::ir::{Action, Mode};
use crate::walk::Verdict;

/// A verdict with the number of the rule that it rests on. Rule 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Word(pub u32);

impl Word {
    /// The bits that say which rule.
    pub const RULE_BITS: u32 = 0x00ff_ffff;
    /// Those that say what to do.
    pub const VERDICT_BITS: u32 = !Word::RULE_BITS;
    /// The one of them that says whether a rule asks for a report.
    pub const LOGGED: u32 = 1 << 30;
    const VERDICT_SHIFT: u32 = 24;

    /// No rule decided.
    pub(super) const DEFAULT: Word = Word::new(Verdict::Allow, 0);

    /// Of these; nothing is reported.
    pub const fn new(verdict: Verdict, rule: u32) -> Word {
        Word((verdict as u32) << Word::VERDICT_SHIFT | rule)
    }

    pub(super) fn of_action(action: Action, mode: Mode, rule: u32) -> Word {
        let verdict = match action {
            Action::Allow => Verdict::Allow,
            _ if mode == Mode::Audit => Verdict::Audit,
            Action::Reject => Verdict::Reject,
            _ => Verdict::Deny,
        };
        Word::new(verdict, rule)
    }

    /// What to do.
    pub fn verdict(self) -> Verdict {
        let code = self.0 >> Word::VERDICT_SHIFT & 7;
        Verdict::ALL.into_iter().find(|verdict| *verdict as u32 == code).unwrap_or(Verdict::Deny)
    }

    /// Number of the rule; 0: none decided.
    pub fn rule(self) -> u32 {
        self.0 & Word::RULE_BITS
    }

    /// Whether it lets pass what no rule has decided.
    pub fn is_nobodys(self) -> bool {
        self == Word::DEFAULT
    }

    /// Whether a rule asks for a report.
    pub fn is_logged(self) -> bool {
        self.0 & Word::LOGGED != 0
    }

    pub(super) fn logged(self) -> Word {
        Word(self.0 | Word::LOGGED)
    }
}
