//! `tartan policy counts`.

use anyhow::Result;
use tartan_api::explain::Count;

use super::trace::word;
use super::{Answer, rule};
use crate::client::{self, At};
use crate::output::{self, Format, table};

pub(super) fn answer(at: &At, format: Format) -> Result<Answer> {
    let counts = client::counts(&at.socket()?)?;
    Ok(Answer { text: output::written(format, &counts, |counts| text(counts))?, code: 0 })
}

fn text(counts: &[Count]) -> String {
    let cells = |it: &Count| vec![it.packets.to_string(), word(it.verdict).to_owned(), rule(&it.object, &it.field, "")];
    table(&["PACKETS", "VERDICT", "BY"], &counts.iter().map(cells).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use tartan_api::explain::Verdict;

    use super::*;

    #[test]
    fn a_line_for_each_rule_and_verdict() {
        let of = |object: &str, field: &str, verdict, packets| Count {
            object: object.into(),
            field: field.into(),
            verdict,
            packets,
        };
        let counts =
            [of("", "", Verdict::Allowed, 12), of("NetworkPolicy/shop/web", "spec.podSelector", Verdict::Denied, 3)];
        let lines = "PACKETS  VERDICT  BY\n\
                     12       allowed  no policy\n\
                     3        denied   NetworkPolicy/shop/web spec.podSelector";
        assert_eq!(text(&counts).trim_end(), lines);
    }
}
