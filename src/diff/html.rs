//! A difference as one page.
//!
//! The page needs nothing from outside and runs no script; a policy in it says so to the browser. Everything that comes
//! from the modules is escaped by the template.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{ComputationDiff, Diff, Kind, Line, Row, Scope};

/// Rows that are the same, shown around what differs; more are folded.
const CONTEXT: usize = 3;

const STYLE: &str = "
:root { color-scheme: light dark; --add: #1a7f3726; --del: #cf222e26; --chg: #9a670026; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem; text-align: left; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.list { font: 12px/1.5 ui-monospace, monospace; border: 1px solid var(--line); border-radius: 4px; overflow: hidden; }
.list div { padding: 0 .6rem 0 2rem; text-indent: -1.4rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.added { background: var(--add); } .removed { background: var(--del); } .changed { background: var(--chg); }
.tag { border: 1px solid var(--line); border-radius: 3px; padding: 0 .3rem; margin-left: .6rem; opacity: .8; }
summary { padding: 0 .6rem; cursor: pointer; opacity: .7; }
";

/// The page. `before` and `after` are what the user calls the modules.
#[must_use]
pub fn page(diff: &Diff, before: &str, after: &str) -> String {
    let counts = diff.counts();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (before) " and " (after) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { code { (before) } " and " code { (after) } }
                @if diff.is_equal() { p { "Both modules are the same program." } }
                table {
                    tr { th { "module" } th { "name" } th.n { "computations" } th.n { "instructions" } }
                    @for (what, side) in [(before, &diff.before), (after, &diff.after)] {
                        tr {
                            td { code { (what) } } td { code { (side.name) } }
                            td.n { (side.computations) } td.n { (side.instructions) }
                        }
                    }
                }
                table {
                    tr { th.n { "same" } th.n { "changed" } th.n { "added" } th.n { "removed" } }
                    tr {
                        td.n { (counts.same) } td.n.changed { (counts.changed) }
                        td.n.added { (counts.added) } td.n.removed { (counts.removed) }
                    }
                }
                p { "Calls are inlined; names and metadata are not compared." }
                (scopes(diff))
                @if !diff.header.is_empty() {
                    h2 { "Module" }
                    div.list {
                        @for change in &diff.header {
                            div class=(if change.added { "added" } else { "removed" }) {
                                (if change.added { "+ " } else { "- " }) (change.text)
                            }
                        }
                    }
                }
                @for computation in &diff.computations { (listing(computation)) }
            }
        }
    };
    page.into_string()
}

fn scopes(diff: &Diff) -> Markup {
    let scopes = diff.scopes();
    html! {
        @if !scopes.is_empty() {
            h2 { "Where" }
            table {
                tr { th { "scope" } th.n { "changed" } th.n { "added" } th.n { "removed" } th { "opcodes" } }
                @for Scope { name, counts, opcodes } in &scopes {
                    tr {
                        td { code { (if name.is_empty() { "(none)" } else { name }) } }
                        td.n { (counts.changed) } td.n { (counts.added) } td.n { (counts.removed) }
                        td { @for (n, (opcode, count)) in opcodes.iter().enumerate() {
                            @if n > 0 { ", " } (opcode) " " (count)
                        } }
                    }
                }
            }
        }
    }
}

/// Rows with what is far from any difference folded; computations without one are folded as a whole.
fn listing(computation: &ComputationDiff) -> Markup {
    let rows = &computation.rows;
    let mut near = vec![false; rows.len()];
    for (n, _) in rows.iter().enumerate().filter(|(_, row)| row.kind != Kind::Same) {
        near.iter_mut().take(n + CONTEXT + 1).skip(n.saturating_sub(CONTEXT)).for_each(|slot| *slot = true);
    }
    let rows: Vec<(bool, &Row)> = near.into_iter().zip(rows).collect();
    html! {
        h2 { code { (computation.name()) } }
        div.list {
            @for run in rows.chunk_by(|(a, _), (b, _)| a == b) {
                @if run.first().is_some_and(|(near, _)| *near) {
                    @for (_, line) in run { (row(line)) }
                } @else {
                    details {
                        summary { (run.len()) " that are the same" }
                        @for (_, line) in run { (row(line)) }
                    }
                }
            }
        }
    }
}

fn row(row: &Row) -> Markup {
    let text = |line: &Option<Line>| line.as_ref().map(|l| l.text.clone()).unwrap_or_default();
    html! {
        @match row.kind {
            Kind::Same => { div { "  " (text(&row.after)) } }
            Kind::Added => { div.added { "+ " (text(&row.after)) } }
            Kind::Removed => { div.removed { "- " (text(&row.before)) } }
            Kind::Changed => {
                div.changed { "< " (text(&row.before)) }
                div.changed {
                    "> " (text(&row.after))
                    @for change in &row.changes { span.tag { (change.name()) } }
                }
            }
        }
    }
}
