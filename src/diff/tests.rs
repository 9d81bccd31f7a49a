use hlo::Module;
use hlo::text::parse;

use super::*;

const STEP: &str = "HloModule step, input_output_alias={ {0}: (0, {}, may-alias) }

sum { a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT s = f32[] add(a, b) }

ENTRY main {
  w = f32[4]{0} parameter(0), metadata={op_name=\"w\"}
  x = f32[4]{0} parameter(1)
  two = f32[] constant(2)
  twos = f32[4]{0} broadcast(two), dimensions={}
  g = f32[4]{0} multiply(x, twos), metadata={op_name=\"jit(step)/mul\"}
  u = f32[4]{0} negate(g)
  n = f32[4]{0} add(w, u), metadata={op_name=\"jit(step)/add\"}
  zero = f32[] constant(0)
  loss = f32[] reduce(g, zero), dimensions={0}, to_apply=sum
  ROOT r = (f32[4]{0}, f32[]) tuple(n, loss)
}
";

fn module(text: &str) -> Module {
    parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// `STEP` with one text replaced by another, compared with `STEP`.
fn edited(edits: &[(&str, &str)]) -> Diff {
    let mut text = STEP.to_owned();
    for (from, to) in edits {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    Diff::of(&module(STEP), &module(&text))
}

/// What differs, in a form to compare with: kind, name in the module that has it, changes.
fn differing(diff: &Diff) -> Vec<String> {
    let rows = diff.rows().filter(|(_, row)| row.kind != Kind::Same);
    rows.map(|(_, row)| {
        let text = row.line().map_or("", |l| l.text.as_str());
        let name = text.trim_start_matches("ROOT ").split(' ').next().unwrap_or_default();
        let changes: Vec<_> = row.changes.iter().map(|c| c.name()).collect();
        format!("{:?} {name} {}", row.kind, changes.join(" ")).trim_end().to_owned()
    })
    .collect()
}

#[test]
fn names_and_metadata_do_not_matter() {
    let before = Module::import(include_bytes!("../../models/mlp/module.hlo.pb")).unwrap();
    let mut after = before.clone();
    after.strip_metadata();
    hlo::testing::shuffle_names(&mut after, 7);
    let diff = Diff::of(&before, &after);
    assert!(diff.is_equal(), "{:?}", differing(&diff));
    assert_eq!(diff.counts().same, diff.before.instructions);
}

#[test]
fn a_call_and_its_body_are_the_same() {
    let called =
        STEP.replace("ENTRY main {", "f { p = f32[4]{0} parameter(0)\n q = f32[4]{0} negate(p) }\nENTRY main {");
    let called = called.replace("negate(g)", "call(g), to_apply=f");
    assert!(Diff::of(&module(STEP), &module(&called)).is_equal());
}

#[test]
fn what_differs_is_said_and_nothing_else() {
    let check =
        |edits: &[(&str, &str)], expected: &[&str]| assert_eq!(differing(&edited(edits)), expected, "{edits:?}");
    check(&[], &[]);
    // The value of a constant: what reads it, reads the same place.
    check(&[("constant(2)", "constant(3)")], &["Changed %two attributes"]);
    check(&[("negate(g)", "negate(x)")], &["Changed %u operands"]);
    check(&[("add(w, u)", "add(u, w)")], &["Changed %n operands"]);
    check(&[("ROOT s = f32[] add", "ROOT s = f32[] maximum")], &["Changed %loss callees", "Removed %s", "Added %s"]);
    check(
        &[("ROOT s = f32[] add(a, b)", "t = f32[] add(a, b)\n ROOT s = f32[] copy(t)")],
        &["Changed %loss callees", "Changed %t root", "Added %s"],
    );
    check(&[("add(w, u)", "add(w, g)"), ("  u = f32[4]{0} negate(g)\n", "")], &["Removed %u", "Changed %n operands"]);
    // A value in between: only who reads it is changed.
    let inserted = [("  n = f32[4]{0} add(w, u)", "  v = f32[4]{0} copy(u)\n  n = f32[4]{0} add(w, v)")];
    check(&inserted, &["Added %v", "Changed %n operands"]);
    check(&[("f32[4]{0} negate(g)", "f32[4]{0} negate(g), control-predecessors={x}")], &["Changed %u control"]);
    check(
        &[("ROOT r = (f32[4]{0}, f32[]) tuple(n, loss)", "ROOT r = (f32[4]{0}, f32[], f32[4]{0}) tuple(n, loss, g)")],
        &["Changed %r operands shape"],
    );
    check(
        &[("f32[4]", "f32[8]")],
        &[
            "Changed %w shape",
            "Changed %x shape",
            "Changed %twos shape",
            "Changed %g shape",
            "Changed %u shape",
            "Changed %n shape",
            "Changed %r shape",
        ],
    );
}

#[test]
fn headers_are_compared() {
    let diff = edited(&[(", input_output_alias={ {0}: (0, {}, may-alias) }", ", buffer_donor={ (1, {}) }")]);
    let lines: Vec<_> = diff.header.iter().map(|c| (c.added, c.text.as_str())).collect();
    assert_eq!(lines, [(false, "output 0 may alias parameter 0"), (true, "parameter 1 is donated")]);
    assert!(!diff.is_equal() && differing(&diff).is_empty());
}

#[test]
fn a_computation_that_nothing_calls_is_added_as_a_whole() {
    let more = "max { a = f32[] parameter(0)\n b = f32[] parameter(1)\n ROOT s = f32[] maximum(a, b) }\nENTRY main {";
    let diff = edited(&[("ENTRY main {", more)]);
    assert_eq!(differing(&diff), ["Added %a.1", "Added %b.1", "Added %s.1"]);
    assert_eq!(Diff::of(&module(&STEP.replace("ENTRY main {", more)), &module(STEP)).counts().removed, 3);
}

/// What a controller adds is found as added, and nothing of the original is lost, whatever things are called.
#[test]
fn an_injected_step_is_the_original_and_more() {
    let bundle = crate::bundle::Bundle::open(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/mlp")));
    let model = crate::model::Model::Bundle(Box::new(bundle.unwrap()));
    for (policy, changed) in
        [(passes::Policy::default(), 1), (passes::Policy::parse(passes::policy::ARTICLE_POLICY).unwrap(), 11)]
    {
        // Emitted for a GPU, where operations of the step read what they read before.
        let injected = model.inject(&policy, crate::target::Platform::Cuda).unwrap().module;
        let diff = Diff::of(model.module(), &injected);
        let counts = diff.counts();
        assert_eq!((counts.removed, counts.changed), (0, changed), "{:?}", differing(&diff));
        assert_eq!(counts.same + counts.changed, diff.before.instructions);
        assert_eq!(counts.same + counts.changed + counts.added, diff.after.instructions);
        let mut unnamed = injected.clone();
        unnamed.strip_metadata();
        hlo::testing::shuffle_names(&mut unnamed, 3);
        let again = Diff::of(model.module(), &unnamed).counts();
        assert_eq!((again.removed, again.added), (0, counts.added));
    }
}

#[test]
fn groups_and_document_count_the_same() {
    let diff = edited(&[("add(w, u)", "subtract(w, u)"), ("constant(2)", "constant(3)")]);
    let groups: Vec<_> = diff.groups().into_iter().map(|g| (g.scope, g.opcode, g.counts.differing())).collect();
    let expected =
        [("", "constant", 1), ("", "tuple", 1), ("jit(step)/add", "add", 1), ("jit(step)/add", "subtract", 1)];
    assert_eq!(groups, expected.map(|(s, o, n)| (s.to_owned(), o.to_owned(), n)));
    let document = serde_json::to_value(diff.summary()).unwrap();
    assert_eq!(document["counts"], serde_json::json!({"same": 10, "changed": 2, "added": 1, "removed": 1}));
    assert_eq!(document["instructions"].as_array().unwrap().len(), 4);
    assert_eq!(document["equal"], false);
}

#[test]
fn a_page_escapes_everything_and_needs_nothing_from_outside() {
    let evil = "<script>alert('&')</script>";
    let text = STEP.replace("op_name=\"w\"", &format!("op_name=\"{evil}\""));
    let text = text.replace("HloModule step, ", &format!("HloModule step, frontend_attributes={{k=\"{evil}\"}}, "));
    let page =
        html::page(&Diff::of(&module(STEP), &module(&text.replace("negate(g)", "negate(x)"))), evil, "\"><img src=x>");
    for part in ["<script", "<img", "http://", "https://", "href=", "url(", "@import"] {
        assert!(!page.contains(part), "{part}");
    }
    assert!(page.contains("&lt;script&gt;alert('&amp;')&lt;/script&gt;"));
    assert!(page.contains("color-scheme") && page.contains("default-src 'none'"));
    assert!(page.contains(r#"<span class="tag">operands</span>"#), "{page}");
    assert!(html::page(&edited(&[]), "a", "b").contains("same program"));
}
