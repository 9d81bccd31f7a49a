//! Tables, all of one look.

/// A table with this look everywhere.
pub(crate) fn table(head: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(head.iter().copied());
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table
}
