//! What a datapath counts by word, as a user reads it.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use tartan_api::explain::Count;

use crate::ir::RuleRef;
use crate::verdicts::Word;
use crate::words;

/// `packets` are by word; `rules` are those that words number now. What rules counted that are not there any more
/// is left out.
pub fn named(rules: &OrdMap<u32, Arc<RuleRef>>, packets: &BTreeMap<u32, u64>) -> Vec<Count> {
    let count = |(word, packets): (&u32, &u64)| {
        let word = Word(*word);
        let rule = rules.get(&word.rule());
        let (object, field) = match rule {
            Some(rule) => (rule.source.to_string(), rule.path.to_string()),
            None if word.is_nobodys() => Default::default(),
            None => return None,
        };
        Some(Count { object, field, verdict: words::verdict(word.verdict()), packets: *packets })
    };
    let mut all: Vec<Count> = packets.iter().filter_map(count).collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use tartan_api::explain::Verdict;
    use tartan_model::{Kind, ObjectId};

    use super::*;
    use crate::walk::Verdict::{Allow, Deny};

    #[test]
    fn words_of_rules_that_are_there_are_named_and_others_are_left_out() {
        let source = ObjectId { kind: Kind::NetworkPolicy, name: "shop/web".into() };
        let rules = OrdMap::unit(7, Arc::new(RuleRef { source, path: "spec.ingress[0]".into() }));
        let word = |verdict, rule| Word::new(verdict, rule).0;
        let counts = [(0, 40), (word(Allow, 0), 9), (word(Allow, 7), 3), (word(Deny, 7), 2), (word(Allow, 8), 1)];
        let of = |object: &str, field: &str, verdict, packets| Count {
            object: object.into(),
            field: field.into(),
            verdict,
            packets,
        };
        let by = "NetworkPolicy/shop/web";
        let wanted = [
            of("", "", Verdict::Allowed, 9),
            of(by, "spec.ingress[0]", Verdict::Allowed, 3),
            of(by, "spec.ingress[0]", Verdict::Denied, 2),
        ];
        assert_eq!(named(&rules, &counts.into()), wanted);
    }
}
