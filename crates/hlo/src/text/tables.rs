//! Names of numbers: what printer and parser both read.
//!
//! The position of a name is its number on the wire.

use crate::ir::Opcode;

pub(super) const PRECISIONS: [&str; 3] = ["default", "high", "highest"];

pub(super) const DOT_ALGORITHMS: [&str; 14] = [
    "unset",
    "dot_any_f8_any_f8_f32",
    "dot_any_f8_any_f8_f32_fast_accum",
    "dot_f16_f16_f16",
    "dot_f16_f16_f32",
    "dot_bf16_bf16_bf16",
    "dot_bf16_bf16_f32",
    "dot_bf16_bf16_f32_x3",
    "dot_bf16_bf16_f32_x6",
    "dot_tf32_tf32_f32",
    "dot_tf32_tf32_f32_x3",
    "dot_f32_f32_f32",
    "dot_f64_f64_f64",
    "dot_bf16_bf16_f32_x9",
];

pub(super) const RNG_ALGORITHMS: [&str; 3] = ["rng_default", "rng_three_fry", "rng_philox"];

pub(super) const DISTRIBUTIONS: [&str; 3] = ["rng_invalid", "rng_uniform", "rng_normal"];

pub(super) const FFT_TYPES: [&str; 4] = ["FFT", "IFFT", "RFFT", "IRFFT"];

pub(super) const TRANSPOSES: [&str; 4] = ["TRANSPOSE_INVALID", "NO_TRANSPOSE", "TRANSPOSE", "ADJOINT"];

pub(super) const PADDING_TYPES: [&str; 3] = ["PADDING_INVALID", "PADDING_VALID", "PADDING_SAME"];

pub(super) const SCHEDULES: [&str; 3] = ["SCHEDULE_NONE", "SCHEDULE_LATEST", "SCHEDULE_EARLIEST"];

pub(super) const API_VERSIONS: [&str; 5] = [
    "API_VERSION_UNSPECIFIED",
    "API_VERSION_ORIGINAL",
    "API_VERSION_STATUS_RETURNING",
    "API_VERSION_STATUS_RETURNING_UNIFIED",
    "API_VERSION_TYPED_FFI",
];

pub(super) const ALIAS_KINDS: [&str; 3] = ["undefined-alias", "may-alias", "must-alias"];

/// These are text on the wire, too.
pub(super) const DIRECTIONS: [&str; 6] = ["EQ", "NE", "GE", "GT", "LE", "LT"];

pub(super) const COMPARISON_TYPES: [&str; 4] = ["FLOAT", "TOTALORDER", "SIGNED", "UNSIGNED"];

pub(super) const FUSION_KINDS: [&str; 4] = ["kLoop", "kInput", "kOutput", "kCustom"];

/// The name of a number; `?` where it has none here.
pub(super) fn choice(number: i32, names: &[&'static str]) -> &'static str {
    usize::try_from(number).ok().and_then(|n| names.get(n)).unwrap_or(&"?")
}

/// The attributes that every instruction may have.
pub(super) const COMMON: [&str; 6] =
    ["sharding", "frontend_attributes", "control-predecessors", "metadata", "backend_config", "result_accuracy"];

/// The attributes of an operation besides the [`COMMON`] ones: those it must have, those it may have.
pub(super) fn attributes(opcode: Opcode) -> (&'static [&'static str], &'static [&'static str]) {
    use Opcode as O;
    match opcode {
        O::Parameter => (&[], &["parameter_replication"]),
        O::GetTupleElement => (&["index"], &[]),
        O::Broadcast | O::Transpose | O::Concatenate | O::Reverse => (&["dimensions"], &[]),
        O::GetDimensionSize | O::SetDimensionSize => (&["dimensions"], &[]),
        O::Reduce => (&["dimensions", "to_apply"], &[]),
        O::Map => (&["to_apply"], &["dimensions"]),
        O::Sort => (&["dimensions", "to_apply"], &["is_stable"]),
        O::Iota => (&["iota_dimension"], &[]),
        O::Compare => (&["direction"], &["type"]),
        O::Slice => (&["slice"], &[]),
        O::DynamicSlice => (&["dynamic_slice_sizes"], &[]),
        O::Pad => (&[], &["padding"]),
        O::Dot => (&[], &DOT),
        O::RaggedDot => (&[], &RAGGED_DOT),
        O::Convolution => (&["dim_labels"], &CONVOLUTION),
        O::ReduceWindow => (&["to_apply"], &["window"]),
        O::SelectAndScatter => (&["select", "scatter"], &["window"]),
        O::Gather => (&GATHER, &["operand_batching_dims", "start_indices_batching_dims", "indices_are_sorted"]),
        O::Scatter => (&SCATTER, &SCATTER_OPTIONS),
        O::ReducePrecision => (&["exponent_bits", "mantissa_bits"], &[]),
        O::Fft => (&["fft_type", "fft_length"], &[]),
        O::Rng => (&["distribution"], &[]),
        O::RngBitGenerator => (&["algorithm"], &[]),
        O::RngGetAndUpdateState => (&["delta"], &[]),
        O::Cholesky => (&[], &["lower"]),
        O::TriangularSolve => (&[], &["left_side", "lower", "unit_diagonal", "transpose_a"]),
        O::BatchNormGrad | O::BatchNormInference | O::BatchNormTraining => (&["epsilon", "feature_index"], &[]),
        O::TopK => (&["k"], &["largest"]),
        O::Fusion => (&["kind", "calls"], &["output_to_operand_aliasing"]),
        O::CustomCall => (&["custom_call_target"], &CUSTOM_CALL),
        O::Infeed => (&[], &["infeed_config"]),
        O::Outfeed => (&[], &["outfeed_shape", "outfeed_config"]),
        O::Send | O::SendDone | O::Recv | O::RecvDone => (&[], &["channel_id", "is_host_transfer"]),
        O::CopyStart => (&[], &["cross_program_prefetch_index"]),
        O::Domain => (&["domain"], &[]),
        O::Call => (&["to_apply"], &["is_composite"]),
        O::While => (&["condition", "body"], &[]),
        O::Conditional => (&[], &["true_computation", "false_computation", "branch_computations"]),
        O::CollectivePermute | O::CollectivePermuteStart => (&["source_target_pairs"], &["channel_id"]),
        O::AllReduce | O::AllReduceStart => (&["to_apply"], &COLLECTIVE),
        O::ReduceScatter => (&["to_apply", "dimensions"], &COLLECTIVE),
        O::AllGather | O::AllGatherStart => (&["dimensions"], &COLLECTIVE),
        O::AllToAll | O::RaggedAllToAll | O::CollectiveBroadcast => (&[], &COLLECTIVE),
        O::AsyncStart => (&["calls"], &["async_execution_thread"]),
        O::AsyncUpdate | O::AsyncDone => (&[], &["calls", "async_execution_thread"]),
        _ => (&[], &[]),
    }
}

const DOT: [&str; 6] = [
    "lhs_batch_dims",
    "lhs_contracting_dims",
    "rhs_batch_dims",
    "rhs_contracting_dims",
    "operand_precision",
    "algorithm",
];

const RAGGED_DOT: [&str; 8] = [
    "lhs_batch_dims",
    "lhs_contracting_dims",
    "rhs_batch_dims",
    "rhs_contracting_dims",
    "operand_precision",
    "algorithm",
    "lhs_ragged_dims",
    "rhs_group_dims",
];

const CONVOLUTION: [&str; 5] = ["window", "feature_group_count", "batch_group_count", "operand_precision", "algorithm"];

const GATHER: [&str; 5] = ["offset_dims", "collapsed_slice_dims", "start_index_map", "index_vector_dim", "slice_sizes"];

const SCATTER: [&str; 5] =
    ["update_window_dims", "inserted_window_dims", "scatter_dims_to_operand_dims", "index_vector_dim", "to_apply"];

const SCATTER_OPTIONS: [&str; 4] =
    ["input_batching_dims", "scatter_indices_batching_dims", "indices_are_sorted", "unique_indices"];

const COLLECTIVE: [&str; 5] =
    ["channel_id", "replica_groups", "constrain_layout", "use_global_device_ids", "dimensions"];

const CUSTOM_CALL: [&str; 15] = [
    "window",
    "dim_labels",
    "feature_group_count",
    "batch_group_count",
    "operand_precision",
    "algorithm",
    "operand_layout_constraints",
    "custom_call_has_side_effect",
    "literal",
    "padding_type",
    "schedule",
    "output_to_operand_aliasing",
    "api_version",
    "called_computations",
    "to_apply",
];
