//! States that the step takes a unit dimension off and puts it on again, as every step under `jax.pmap` does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Array, Compiled, Contraction, Random};
use hlo::Module;
use passes::layout::ArrayKind;
use passes::step::{MomentForm, MomentOf, StateRole, UpdateForm, Value};
use passes::{InjectOptions, Injection, Policy, Telemetry, discover, inject};
use pjrt::ElementType;

/// Least squares by momentum, skipped where the loss is not finite, over inputs p, m, a frozen q, count, key, x and y.
///
/// `lead` stands in front of the dimensions of every state: "1," or nothing. `back` is how the new value of p becomes the
/// output.
fn text(lead: &str, back: &str) -> String {
    format!(
        "HloModule squeezed

sum {{
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT sum = f32[] add(a, b)
}}

ENTRY step {{
  p = f32[{lead}3,3] parameter(0)
  m = f32[{lead}3,3] parameter(1)
  q = f32[{lead}3] parameter(2)
  count = s32[{lead}1] parameter(3)
  key = u32[{lead}2] parameter(4)
  x = f32[8,3] parameter(5)
  y = f32[8,3] parameter(6)
  w = f32[3,3] reshape(p)
  qs = f32[3] reshape(q)
  shift = f32[8,3] broadcast(qs), dimensions={{1}}
  xw = f32[8,3] dot(x, w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  shifted = f32[8,3] add(xw, shift)
  r = f32[8,3] subtract(shifted, y)
  g = f32[3,3] dot(x, r), lhs_contracting_dims={{0}}, rhs_contracting_dims={{0}}
  old = f32[3,3] reshape(m)
  b = f32[] constant(0.875)
  bs = f32[3,3] broadcast(b), dimensions={{}}
  decayed = f32[3,3] multiply(old, bs)
  trace = f32[3,3] add(decayed, g)
  lr = f32[] constant(0.0625)
  lrs = f32[3,3] broadcast(lr), dimensions={{}}
  u = f32[3,3] multiply(trace, lrs)
  whole = f32[{lead}3,3] slice(p), slice={{{whole}}}
  again = f32[3,3] reshape(whole)
  moved = f32[3,3] subtract(again, u)
  zero = f32[] constant(0)
  squares = f32[8,3] multiply(r, r)
  loss = f32[] reduce(squares, zero), dimensions={{0,1}}, to_apply=sum
  finite = pred[] is-finite(loss)
  finites = pred[3,3] broadcast(finite), dimensions={{}}
  new = f32[3,3] select(finites, moved, w)
{back}
  m_new = f32[{lead}3,3] reshape(trace)
  q_new = f32[{lead}3] reshape(qs)
  n = s32[] reshape(count)
  one = s32[] constant(1)
  n_new = s32[] add(n, one)
  count_new = s32[{lead}1] reshape(n_new)
  words = u32[2] reshape(key)
  split = u32[2,2] broadcast(words), dimensions={{1}}
  shifts = u32[2,2] iota(), iota_dimension=0
  keys = u32[2,2] add(split, shifts)
  second = u32[1,2] slice(keys), slice={{[1:2], [0:2]}}
  key_new = u32[{lead}2] reshape(second)
  ROOT result = (f32[{lead}3,3], f32[{lead}3,3], f32[{lead}3], s32[{lead}1], u32[{lead}2], f32[]) \
         tuple(p_new, m_new, q_new, count_new, key_new, loss)
}}
",
        whole = if lead.is_empty() { "[0:3], [0:3]" } else { "[0:1], [0:3], [0:3]" },
    )
}

fn parse(text: &str) -> Module {
    hlo::text::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn step(lead: &str, back: &str) -> Module {
    parse(&text(lead, back))
}

fn squeezed() -> Module {
    step("1,", "  p_new = f32[1,3,3] reshape(new)")
}

/// The same without unit dimensions.
fn flat() -> Module {
    step("", "  p_new = f32[3,3] reshape(new)")
}

fn name(module: &Module, value: Value) -> String {
    module.entry_computation().get(value.instruction).unwrap().name.clone()
}

#[test]
fn a_state_is_followed_through_the_dimension_taken_off_and_put_on() {
    let module = squeezed();
    let step = discover(&module).unwrap();
    let [p] = step.parameters.iter().filter(|p| p.found_gradient().is_some()).collect::<Vec<_>>()[..] else {
        panic!("{:?}", step.parameters)
    };
    assert_eq!((p.input, p.output, p.name.as_str(), p.shape.dims()), (0, 0, "%p", &[1, 3, 3][..]));
    assert_eq!(name(&module, p.found_gradient().unwrap().eff), "g");
    let UpdateForm::Subtract { u } = p.update.form else { panic!("{:?}", p.update) };
    let [old, new, guard] = [p.update.old, p.update.new, p.update.guards[0]].map(|value| name(&module, value));
    assert_eq!((name(&module, u), old, new, guard), ("u".into(), "w".into(), "moved".into(), "new".into()));
    let moment = &p.moments[0];
    assert_eq!((moment.input, moment.form, moment.of), (1, MomentForm::HeavyBall, MomentOf::Gradient));
    assert_eq!(p.found_momentum()[0].coefficients[0].constant, Some(0.875));
    assert_eq!((step.batch.as_slice(), step.loss), (&[5, 6][..], Some(5)));
    let roles: Vec<_> = step.states.iter().map(|s| s.role).collect();
    use StateRole as R;
    assert_eq!(roles, [R::Parameter, R::Moment, R::Constant, R::ScheduleCounter, R::RngKey]);
    let stay: Vec<_> = step.states.iter().filter(|s| s.stays()).map(|s| s.name.as_str()).collect();
    assert_eq!(stay, ["%q"]);
    // What passes and reports are given is the state itself.
    let m = step.state(1).unwrap();
    assert_eq!(
        (name(&module, m.value), name(&module, m.new_value), m.shape.dims()),
        ("m".into(), "m_new".into(), &[1, 3, 3][..])
    );
}

#[test]
fn another_order_of_elements_is_another_state() {
    let turned =
        step("1,", "  turned = f32[3,3] transpose(new), dimensions={1,0}\n  p_new = f32[1,3,3] reshape(turned)");
    assert!(!carries_on(&turned));
    let reversed =
        step("1,", "  reversed = f32[3,3] reverse(new), dimensions={0}\n  p_new = f32[1,3,3] reshape(reversed)");
    assert!(!carries_on(&reversed));
    // The elements of a part of it, put together to an array of its size, are not those of the state.
    let part = step(
        "1,",
        "  row = f32[1,3] slice(new), slice={[0:1], [0:3]}\n  line = f32[3] reshape(row)\n  \
         rows = f32[3,3] broadcast(line), dimensions={1}\n  p_new = f32[1,3,3] reshape(rows)",
    );
    assert!(!carries_on(&part));
    assert!(carries_on(&squeezed()));
}

#[test]
fn what_a_branch_makes_of_a_state_is_not_where_the_update_starts() {
    let branches = "penalty {
  given = f32[1,3,3] parameter(0)
  inside = f32[3,3] reshape(given)
  large = f32[3,3] multiply(inside, inside)
  nothing = f32[] constant(0)
  ROOT penalty = f32[] reduce(large, nothing), dimensions={0,1}, to_apply=sum
}

none {
  unread = f32[1,3,3] parameter(0)
  ROOT none = f32[] constant(0)
}

ENTRY step {";
    let text = text("1,", "  p_new = f32[1,3,3] reshape(new)")
        .replace("ENTRY step {", branches)
        .replace(
            "  w = ",
            "  now = pred[] constant(true)\n  extra = f32[] conditional(now, p, p), true_computation=penalty, \
             false_computation=none\n  w = ",
        )
        .replace("  finite = ", "  total = f32[] add(loss, extra)\n  finite = ")
        .replace("count_new, key_new, loss)", "count_new, key_new, total)");
    let module = parse(&text);
    let step = discover(&module).unwrap();
    let p = step.parameters.iter().find(|p| p.input == 0).unwrap();
    assert_eq!(name(&module, p.update.old), "w");
    assert!(matches!(p.update.form, UpdateForm::Subtract { .. }), "{:?}", p.update);
}

/// Whether the first input is seen to be carried on.
fn carries_on(module: &Module) -> bool {
    discover(module).is_ok_and(|step| step.state(0).is_some())
}

/// A controlled step with the controller's arrays.
struct Controlled {
    program: Compiled,
    injection: Injection,
    own: Vec<Array>,
}

impl Controlled {
    fn new(mut module: Module, policy: &Policy) -> Self {
        let injection = inject(&mut module, policy, InjectOptions::default()).unwrap();
        let layout = &injection.layout;
        let own = layout.inputs.iter().map(|input| match input.kind {
            ArrayKind::Policy => Array::vector(&layout.policy_vector(policy).unwrap()),
            ArrayKind::State => Array::vector(&layout.initial_state()),
            ArrayKind::Counters => Array::s32(&input.dims, &layout.initial_counters()),
            _ => zeros(&input.dims, &input.element_type),
        });
        let own = own.collect();
        Self { program: Compiled::with(&module, Contraction::Impossible), injection, own }
    }

    fn run(&mut self, inputs: &[Array]) -> (Vec<Array>, Telemetry) {
        let layout = &self.injection.layout;
        let mut outputs = self.program.run(&[inputs, &self.own].concat());
        let added = outputs.split_off(outputs.len() - layout.outputs.len());
        let mut told = None;
        for (said, value) in layout.outputs.iter().zip(added) {
            match layout.inputs.iter().position(|i| i.kind == said.kind && i.copy_of == said.copy_of) {
                Some(slot) => self.own[slot] = value,
                None => told = Some(Telemetry::decode(layout, &value.floats()).unwrap()),
            }
        }
        (outputs, told.unwrap())
    }
}

/// Of a type with four bytes.
fn zeros(dims: &[i64], element_type: &str) -> Array {
    let bytes = vec![0; 4 * dims.iter().product::<i64>() as usize];
    Array { element_type: element_type.parse().unwrap(), dims: dims.to_vec(), bytes }
}

/// Inputs by the module's own shapes; `width` is that of the data.
fn inputs(module: &Module, states: Option<&[Array]>, seed: u64, width: f64) -> Vec<Array> {
    let mut random = Random::new(seed);
    let entry = module.entry_computation();
    let made = entry.parameters().into_iter().enumerate().map(|(number, id)| {
        let shape = &entry.get(id).unwrap().shape;
        match states.and_then(|states| states.get(number).filter(|_| number < 5)) {
            Some(state) => state.clone(),
            None if [1, 3, 4].contains(&number) => zeros(shape.dims(), &shape.element_type().to_string()),
            None => {
                let values = (0..shape.num_elements()).map(|_| (width * random.normal()) as f32);
                Array::f32(shape.dims(), &values.collect::<Vec<_>>())
            }
        }
    });
    made.collect()
}

fn bits(outputs: &[Array]) -> Vec<(ElementType, &[u8])> {
    outputs.iter().map(|a| (a.element_type, a.bytes.as_slice())).collect()
}

/// Whatever can be asked for, and nothing that is done.
const ARMED: &str = "[gate.norm]\nmultiple = 1e6\n[scale.tensors]\n\"*\" = 1.0\n[momentum]\nscale = 1.0\n\
                     [rollback]\nkind = \"snapshot\"\nrefresh = 2";

#[test]
fn control_that_does_nothing_changes_no_bit() {
    let module = squeezed();
    let plain = Compiled::with(&module, Contraction::Impossible);
    for policy in [Policy::monitor(), Policy::parse(ARMED).unwrap()] {
        let mut controlled = Controlled::new(module.clone(), &policy);
        let mut states: Option<Vec<Array>> = None;
        for number in 0..5 {
            let inputs = inputs(&module, states.as_deref(), number, 0.5);
            let expected = plain.run(&inputs);
            let (found, told) = controlled.run(&inputs);
            assert!(told.applied && told.tensors[0].norm > 0.0);
            assert_eq!(found, expected, "step {number}");
            states = Some(expected);
        }
    }
}

#[test]
fn control_does_what_it_does_without_unit_dimensions() {
    let policy = Policy::parse(
        "[gate.norm]\nmultiple = 3.0\nwarmup = 2\n[scale.tensors]\n\"*\" = 0.5\n[momentum]\nscale = 0.75\n\
         [rollback]\nkind = \"snapshot\"\npatience = 2\nrefresh = 2",
    )
    .unwrap();
    let modules = [squeezed(), flat()];
    let [mut a, mut b] = modules.clone().map(|module| Controlled::new(module, &policy));
    let snapshots = |c: &Controlled| {
        let copies = c.injection.layout.inputs.iter().filter_map(|i| i.copy_of.map(|of| (of, i.dims.len())));
        copies.collect::<Vec<_>>()
    };
    assert_eq!(snapshots(&a), [(0, 3), (1, 3)]);
    assert_eq!(snapshots(&b), [(0, 2), (1, 2)]);
    let mut states: [Option<Vec<Array>>; 2] = [None, None];
    let plain = Compiled::with(&modules[0], Contraction::Impossible);
    let (mut refused, mut returned, mut other) = (0, 0, 0);
    for number in 0..12 {
        let width = if (6..9).contains(&number) { 50.0 } else { 0.5 };
        let [x, y] = [0, 1].map(|k| inputs(&modules[k], states[k].as_deref(), number, width));
        let uncontrolled = plain.run(&x);
        let ((x, told), (y, flat)) = (a.run(&x), b.run(&y));
        other += u32::from(bits(&uncontrolled[..1]) != bits(&x[..1]));
        assert_eq!(bits(&x), bits(&y), "step {number}");
        assert_eq!(format!("{told:?}"), format!("{flat:?}"), "step {number}");
        refused += u32::from(!told.applied);
        returned += u32::from(told.rollback.unwrap().rolled_back);
        states = [Some(x), Some(y)];
    }
    assert!(refused > 0 && returned > 0 && other > 0, "{refused} {returned} {other}");
}
