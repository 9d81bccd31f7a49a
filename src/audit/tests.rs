//! Counting, on small optimized modules written by hand.

use super::compile::{CompilerReport, Memory, Optimized};
use super::kernel::{KernelKind, Profile};
use super::{Audit, Communicated, CountedBy, Limits};
use crate::target::{Platform, Target};

fn profile(text: &str, platform: Platform) -> Profile {
    Profile::of(&hlo::text::parse(text).unwrap(), platform)
}

fn counts(profile: &Profile) -> Vec<(KernelKind, u64)> {
    KernelKind::ALL.into_iter().map(|kind| (kind, profile.launches(kind))).filter(|&(_, count)| count > 0).collect()
}

/// A loop whose body launches a fusion and a copy.
fn a_loop(backend_config: &str) -> String {
    format!(
        r#"HloModule m, entry_computation_layout={{(f32[8]{{0}})->f32[8]{{0}}}}

%twice (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %sum = f32[8]{{0}} add(%x, %x)
}}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %state = (s32[], f32[8]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %v = f32[8]{{0}} get-tuple-element(%state), index=1
  %fusion = f32[8]{{0}} fusion(%v), kind=kLoop, calls=%twice
  %copy = s32[] copy(%i)
  ROOT %next = (s32[], f32[8]{{0}}) tuple(%copy, %fusion)
}}

%condition (state.1: (s32[], f32[8])) -> pred[] {{
  %state.1 = (s32[], f32[8]{{0}}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8]{{0}}) tuple(%zero, %p)
  %while = (s32[], f32[8]{{0}}) while(%start), condition=%condition, body=%body{backend_config}
  ROOT %out = f32[8]{{0}} get-tuple-element(%while), index=1
}}
"#
    )
}

#[test]
fn the_body_of_a_loop_counts_as_often_as_it_runs() {
    let known = profile(&a_loop(r#", backend_config={"known_trip_count":{"n":"5"}}"#), Platform::Cuda);
    assert_eq!(counts(&known), [(KernelKind::Fusion, 5), (KernelKind::Copy, 5), (KernelKind::Other, 5)]);
    assert!(known.host.is_empty());
    // 8 elements are read and written, 5 times, with 8 additions; a counter is copied and compared.
    assert_eq!((known.bytes(), known.flops()), (5 * (64 + 8 + 9), 5 * 8));
    // On a TPU the comparison is its scalar unit's.
    let tpu = profile(&a_loop(r#", backend_config={"known_trip_count":{"n":"5"}}"#), Platform::Tpu);
    assert_eq!(tpu.launches(KernelKind::Scalar), 5);
}

#[test]
fn a_loop_of_unknown_length_brings_the_host_in() {
    let unknown = profile(&a_loop(""), Platform::Cuda);
    assert_eq!(unknown.launches(KernelKind::Fusion), 1);
    let told: Vec<_> = unknown.host.iter().map(|h| (h.name.as_str(), h.what.as_str())).collect();
    assert_eq!(told, [("while", "while without a known trip count")]);
}

#[test]
fn a_tpu_counts_by_itself_and_its_compiler_does_not_say_so() {
    let by_one =
        a_loop("").replace("%copy = s32[] copy(%i)", "%one = s32[] constant(1)\n  %copy = s32[] add(%i, %one)");
    let tpu = profile(&by_one, Platform::Tpu);
    assert_eq!(tpu.launches(KernelKind::Fusion), 5);
    assert!(tpu.host.is_empty());
    // By 2, from 0 to 5: three times.
    let by_two = by_one.replace("%one = s32[] constant(1)", "%one = s32[] constant(2)");
    assert_eq!(profile(&by_two, Platform::Tpu).launches(KernelKind::Fusion), 3);
    // A GPU waits for the host wherever there is no note.
    assert_eq!(profile(&by_one, Platform::Cuda).host.len(), 1);
    for endless in [by_one.replace("constant(1)", "constant(0)"), by_one.replace("LT", "GT"), a_loop("")] {
        assert_eq!(profile(&endless, Platform::Tpu).host.len(), 1, "{endless}");
    }
}

const HOST: &str = r#"HloModule m

%same (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %bitcast = f32[8]{0} bitcast(%x)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (p: f32[8], q: pred[]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %q = pred[] parameter(1)
  %token = token[] after-all()
  %outfeed = token[] outfeed(%p, %token), outfeed_shape=f32[8]{0}
  %call = f32[8]{0} custom-call(%p), custom_call_target="xla_ffi_python_gpu_callback"
  %marker = f32[8]{0} custom-call(%call), custom_call_target="Sharding"
  %gemm = f32[8]{0} custom-call(%marker), custom_call_target="__cublas$gemm"
  %name = f32[8]{0} fusion(%gemm), kind=kLoop, calls=%same
  %reduced = f32[8]{0} all-reduce(%name), replica_groups={}, to_apply=%sum
  %away = f32[8]{0:S(5)} copy(%reduced)
  ROOT %branch = f32[8]{0} conditional(%q, %away, %away), true_computation=%same, false_computation=%same
}
"#;

#[test]
fn whatever_brings_the_host_in_is_named() {
    let found = profile(HOST, Platform::Cuda);
    let told: Vec<_> = found.host.iter().map(|h| h.what.as_str()).collect();
    let callback = "host callback xla_ffi_python_gpu_callback";
    assert_eq!(told, ["outfeed", callback, "copy to or from host memory", "conditional"]);
    // The callback and the product; a marker and a new name launch nothing.
    let expected = [(KernelKind::Copy, 1), (KernelKind::Call, 2), (KernelKind::Collective, 1)];
    assert_eq!(counts(&found), expected);
    let [collective] = found.collectives.as_slice() else { panic!("{:?}", found.collectives) };
    assert_eq!((collective.opcode.as_str(), collective.bytes), ("all-reduce", 32));
}

const PRODUCTS: &str = r#"HloModule m

%sliced (x: f32[1024], at: s32[]) -> f32[8] {
  %x = f32[1024]{0} parameter(0)
  %at = s32[] parameter(1)
  ROOT %slice = f32[8]{0} dynamic-slice(%x, %at), dynamic_slice_sizes={8}
}

%updated (x.1: f32[1024], u: f32[8], at.1: s32[]) -> f32[1024] {
  %x.1 = f32[1024]{0} parameter(0)
  %u = f32[8]{0} parameter(1)
  %at.1 = s32[] parameter(2)
  ROOT %update = f32[1024]{0} dynamic-update-slice(%x.1, %u, %at.1)
}

ENTRY %main (a: f32[4,16], b: f32[16,2], x.2: f32[1024], at.2: s32[]) -> (f32[4,2], f32[1024]) {
  %a = f32[4,16]{1,0} parameter(0)
  %b = f32[16,2]{1,0} parameter(1)
  %x.2 = f32[1024]{0} parameter(2)
  %at.2 = s32[] parameter(3)
  %dot = f32[4,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %part = f32[8]{0} fusion(%x.2, %at.2), kind=kLoop, calls=%sliced
  %whole = f32[1024]{0} fusion(%x.2, %part, %at.2), kind=kLoop, calls=%updated
  %fast = f32[4,2]{1,0:S(1)} copy(%dot)
  ROOT %out = (f32[4,2]{1,0}, f32[1024]{0}) tuple(%dot, %whole)
}
"#;

#[test]
fn bytes_and_operations_follow_from_shapes() {
    let found = profile(PRODUCTS, Platform::Cuda);
    let of = |name: &str| found.kernels.iter().find(|k| k.name == name).unwrap();
    assert_eq!((of("dot").bytes, of("dot").flops), (4 * (64 + 32 + 8), 2 * 4 * 2 * 16));
    // Of an array of 1024 only what is sliced is read, and only what is updated is written.
    assert_eq!(of("part").bytes, 32 + 4 + 32);
    assert_eq!(of("whole").bytes, 32 + 4 + 32);
    // A copy into fast memory crosses the bus of main memory once.
    assert_eq!((of("fast").bytes, of("fast").main_memory_bytes), (64, 32));
    assert_eq!(profile(PRODUCTS, Platform::Cpu).launches(KernelKind::Call), 1, "a product is Eigen's on CPU");
}

/// A step that updates w, as a compiler leaves it.
fn step(root: &str, control: &str, alias: &str) -> Optimized {
    let text = format!(
        r#"HloModule m{alias}

%add (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}}

%update (w: f32[8], g: f32[8]) -> f32[8] {{
  %w = f32[8]{{0}} parameter(0)
  %g = f32[8]{{0}} parameter(1)
  %new = f32[8]{{0}} subtract(%w, %g), metadata={{op_name="jit(step)/sub"}}
{root}
}}

ENTRY %main (w.1: f32[8], g.1: f32[8]) -> (f32[8]) {{
  %w.1 = f32[8]{{0}} parameter(0)
  %g.1 = f32[8]{{0}} parameter(1)
{control}
  %fusion = f32[8]{{0}} fusion(%w.1, %g.1), kind=kLoop, calls=%update
  ROOT %out = (f32[8]{{0}}) tuple(%fusion)
}}
"#
    );
    let memory = Memory { arguments: 64, outputs: 32, aliased: 32, temporary: 100 };
    let report = CompilerReport { platform_version: "test".to_owned(), memory, flops: None, bytes_accessed: None };
    Optimized { report, module: hlo::text::parse(&text).unwrap() }
}

const PLAIN: &str = "  ROOT %root = f32[8]{0} copy(%new)";
const GATED: &str = r#"  ROOT %gated = f32[8]{0} maximum(%new, %w), metadata={op_name="entropic/gate"}"#;
const ALIAS: &str = ", input_output_alias={ {0}: (0, {}, may-alias) }";

#[test]
fn a_kernel_with_control_in_it_is_the_same_kernel() {
    let target: Target = "h200".parse().unwrap();
    let measured = r#"  %square = f32[8]{0} multiply(%g.1, %g.1), metadata={op_name="entropic/measure-entropy/w"}"#;
    let audit = Audit::compare(&target, &step(PLAIN, "", ALIAS), &step(GATED, measured, ALIAS));
    assert_eq!((audit.extra_kernels(), audit.counted_by), (1, CountedBy::Shapes));
    assert_eq!(audit.added.iter().map(|k| (k.name.as_str(), k.is_control())).collect::<Vec<_>>(), [("square", true)]);
    assert!(audit.removed.is_empty());
    assert_eq!((audit.aliases_kept, audit.aliases_lost.len()), (1, 0));
    assert_eq!(audit.controller_ops["entropic/gate"], ["fusion"]);
    assert_eq!(audit.controller_ops["entropic/measure-entropy/w"], ["square"]);
    let limits = Limits {
        extra_kernels: Some(1),
        extra_bytes: Some(200.0),
        extra_temp: Some(0.0),
        no_host: true,
        only_sums: true,
    };
    assert!(audit.exceeded(&limits).is_empty());
    let exceeded = audit.exceeded(&Limits { extra_kernels: Some(0), extra_bytes: Some(1.0), ..limits });
    assert_eq!(exceeded.len(), 2, "{exceeded:?}");
}

#[test]
fn only_sums_between_devices_are_allowed_to_be_added() {
    let target: Target = "tpu-v5e:4x4".parse().unwrap();
    let limits = Limits { only_sums: true, ..Limits::default() };
    let plain = step(PLAIN, "", ALIAS);
    let sum = "  %sum = f32[8]{0} all-reduce(%g.1), replica_groups={}, to_apply=%add";
    let gather = "  %all = f32[64]{0} all-gather(%g.1), replica_groups={}, dimensions={0}";
    let with = |control: &str| Audit::compare(&target, &plain, &step(GATED, control, ALIAS));
    let summed = with(sum);
    assert_eq!(summed.extra_collectives()["all-reduce"], Communicated { launches: 1, bytes: 32 });
    assert!(summed.exceeded(&limits).is_empty());
    let exceeded = with(gather).exceeded(&limits);
    assert!(exceeded.len() == 1 && exceeded[0].contains("1 more all-gather"), "{exceeded:?}");
    assert!(with(gather).exceeded(&Limits::default()).is_empty());
}

#[test]
fn a_lost_alias_always_fails() {
    let target: Target = "cpu".parse().unwrap();
    let audit = Audit::compare(&target, &step(PLAIN, "", ALIAS), &step(GATED, "", ""));
    let exceeded = audit.exceeded(&Limits::default());
    assert!(exceeded.len() == 1 && exceeded[0].contains("copied in every step"), "{exceeded:?}");
}

#[test]
fn nothing_is_its_own_audit() {
    let target: Target = "tpu-v5e".parse().unwrap();
    let audit = Audit::compare(&target, &step(PLAIN, "", ALIAS), &step(PLAIN, "", ALIAS));
    assert!(audit.added.is_empty() && audit.removed.is_empty() && audit.extra_host().is_empty());
    assert_eq!((audit.extra_kernels(), audit.extra_bytes(), audit.extra_temp()), (0, 0.0, 0.0));
}
