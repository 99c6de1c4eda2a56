//! `tartan policy list`.

use anyhow::{Context, Result};
use tartan_api::explain::Row;
use tartan_policy::{effective, trace};

use super::source::Known;
use super::trace::word;
use super::{Answer, first_of, rule};
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
        let by = rule(&row.object, &row.field, &row.place);
        vec![row.direction.clone(), first_of(&row.peers), row.packets.clone(), word(row.verdict).to_owned(), by]
    };
    table(&["DIRECTION", "OTHER END", "PACKETS", "VERDICT", "BY"], &rows.iter().map(cells).collect::<Vec<_>>())
}
