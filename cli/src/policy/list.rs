//! `tartan policy list`.

use anyhow::{Context, Result};
use tartan_api::explain::Row;
use tartan_policy::{effective, trace};

use super::Answer;
use super::source::Known;
use super::trace::word;
use crate::output::{self, Format, table};

pub(super) fn answer(pod: &str, known: &Known, format: Format) -> Result<Answer> {
    let program = trace::program(&known.world.policies);
    let mut rows = effective::rows(&known.world, &program, pod).with_context(|| format!("--pod {pod}"))?;
    for row in &mut rows {
        row.place = known.place(&row.object, &row.field);
    }
    Ok(Answer { text: output::written(format, &rows, |rows| text(rows))?, code: 0 })
}

fn text(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let by = match (row.object.as_str(), row.place.as_str()) {
            ("", _) => "no policy".to_owned(),
            (object, "") => format!("{object} {}", row.field),
            (object, place) => format!("{object} {} ({place})", row.field),
        };
        vec![row.direction.clone(), peers(&row.peers), row.packets.clone(), word(row.verdict).to_owned(), by]
    };
    table(&["DIRECTION", "OTHER END", "PACKETS", "VERDICT", "BY"], &rows.iter().map(cells).collect::<Vec<_>>())
}

/// The first few; a program gets them all.
fn peers(peers: &[String]) -> String {
    const SHOWN: usize = 3;
    let first = peers.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if peers.len() > SHOWN { format!("{first}; {} more", peers.len() - SHOWN) } else { first }
}
