//! What follows an instruction's operands.

use std::fmt::{self, Display, Write};

use super::Preset;
use super::dimensions::{DimLabels, PaddingText, WindowText};
use super::literal::write_literal;
use super::quote::{Braces, Joined, Name, Quoted, QuotedOrDict};
use super::shape::{Layouts, ShapeText};
use super::sharding::{Groups, ShardingText};
use super::tables::{self, choice};
use crate::ir::{Computation, Instruction, Module, Opcode};
use crate::proto::{DotDimensionNumbers, FrontendAttributes, HloInstructionProto, OpMetadata, PrimitiveType};

/// Writes every attribute, each after a comma.
pub(super) fn write(
    out: &mut String,
    module: &Module,
    computation: &Computation,
    instruction: &Instruction,
    preset: Preset,
) -> fmt::Result {
    let mut writer = Writer { out, instruction, proto: &instruction.attributes, preset };
    writer.of_opcode()?;
    writer.of_callees(module, computation)?;
    writer.of_any_opcode()?;
    writer.control(computation)?;
    writer.metadata()?;
    writer.config()
}

/// Writes the attributes that say what an operation does: none that names something, and no metadata.
pub(super) fn write_operation(out: &mut String, instruction: &Instruction) -> fmt::Result {
    let mut writer = Writer { out, instruction, proto: &instruction.attributes, preset: Preset::Canonical };
    writer.of_opcode()?;
    writer.of_any_opcode()?;
    writer.config()
}

struct Writer<'a> {
    out: &'a mut String,
    instruction: &'a Instruction,
    proto: &'a HloInstructionProto,
    preset: Preset,
}

impl Writer<'_> {
    fn put(&mut self, key: &str, value: impl Display) -> fmt::Result {
        write!(self.out, ", {key}={value}")
    }

    fn flag(&mut self, key: &str, set: bool) -> fmt::Result {
        if set { self.put(key, true) } else { Ok(()) }
    }

    fn list(&mut self, key: &str, values: &[i64]) -> fmt::Result {
        if values.is_empty() { Ok(()) } else { self.put(key, Braces(values)) }
    }

    fn dimensions(&mut self) -> fmt::Result {
        self.put("dimensions", Braces(&self.proto.dimensions))
    }

    fn of_opcode(&mut self) -> fmt::Result {
        use Opcode as O;
        let p = self.proto;
        match self.instruction.opcode {
            O::Broadcast
            | O::Reduce
            | O::Transpose
            | O::Concatenate
            | O::Reverse
            | O::Map
            | O::Sort
            | O::GetDimensionSize
            | O::SetDimensionSize => {
                self.dimensions()?;
                self.flag("is_stable", p.is_stable)
            }
            O::Iota => self.put("iota_dimension", p.dimensions.first().unwrap_or(&0)),
            O::GetTupleElement => self.put("index", p.tuple_index),
            O::Parameter => match p.parameter_replication.as_option() {
                Some(r) if !r.replicated_at_leaf_buffers.is_empty() => {
                    self.put("parameter_replication", Braces(&r.replicated_at_leaf_buffers))
                }
                _ => Ok(()),
            },
            O::Compare => self.comparison(),
            O::Slice => self.slice(),
            O::DynamicSlice => self.put("dynamic_slice_sizes", Braces(&p.dynamic_slice_sizes)),
            O::Pad => match p.padding_config.as_option() {
                Some(padding) if !padding.dimensions.is_empty() => self.put("padding", PaddingText(padding)),
                _ => Ok(()),
            },
            O::Dot => self.dot(p.dot_dimension_numbers.as_option()),
            O::RaggedDot => self.ragged_dot(),
            O::Convolution => self.convolution(),
            O::ReduceWindow | O::SelectAndScatter => self.window(),
            O::Gather => self.gather(),
            O::Scatter => self.scatter(),
            O::ReducePrecision => {
                self.put("exponent_bits", p.exponent_bits)?;
                self.put("mantissa_bits", p.mantissa_bits)
            }
            O::Fft => {
                self.put("fft_type", choice(p.fft_type, &tables::FFT_TYPES))?;
                self.put("fft_length", Braces(&p.fft_length))
            }
            O::Rng => self.put("distribution", choice(p.distribution, &tables::DISTRIBUTIONS)),
            O::RngBitGenerator => self.put("algorithm", choice(p.rng_algorithm, &tables::RNG_ALGORITHMS)),
            O::RngGetAndUpdateState => self.put("delta", p.delta),
            O::Cholesky => self.flag("lower", p.cholesky_options.as_option().is_some_and(|o| o.lower)),
            O::TriangularSolve => self.triangular_solve(),
            O::BatchNormGrad | O::BatchNormInference | O::BatchNormTraining => {
                self.put("epsilon", super::float::Single(p.epsilon))?;
                self.put("feature_index", p.feature_index)
            }
            O::TopK => {
                self.put("k", p.k)?;
                self.put("largest", p.largest)
            }
            O::Fusion => {
                self.put("kind", &p.fusion_kind)?;
                self.operand_aliasing()
            }
            O::CustomCall => self.custom_call(),
            O::Infeed if !p.infeed_config.is_empty() => self.put("infeed_config", Quoted(&p.infeed_config)),
            O::Outfeed => {
                if let Some(shape) = p.outfeed_shape.as_option() {
                    self.put("outfeed_shape", ShapeText { shape, layouts: Layouts::All, indices: false })?;
                }
                if p.outfeed_config.is_empty() { Ok(()) } else { self.put("outfeed_config", Quoted(&p.outfeed_config)) }
            }
            O::Send | O::SendDone | O::Recv | O::RecvDone => {
                self.channel()?;
                self.flag("is_host_transfer", p.is_host_transfer)
            }
            O::CopyStart => match p.cross_program_prefetch_index {
                Some(index) => self.put("cross_program_prefetch_index", index),
                None => Ok(()),
            },
            O::Domain => self.domain(),
            O::Call => self.flag("is_composite", p.is_composite),
            O::CollectivePermute | O::CollectivePermuteStart => {
                self.channel()?;
                let pairs: Vec<_> =
                    p.source_target_pairs.iter().map(|p| format!("{{{},{}}}", p.source, p.target)).collect();
                self.put("source_target_pairs", Braces(&pairs))
            }
            O::AllReduce
            | O::AllReduceStart
            | O::AllGather
            | O::AllGatherStart
            | O::ReduceScatter
            | O::AllToAll
            | O::RaggedAllToAll
            | O::CollectiveBroadcast => self.collective(),
            _ => Ok(()),
        }
    }

    fn comparison(&mut self) -> fmt::Result {
        self.put("direction", &self.proto.comparison_direction)?;
        // The other types are those that the operands have anyway.
        if self.proto.comparison_type == "TOTALORDER" { self.put("type", "TOTALORDER") } else { Ok(()) }
    }

    fn slice(&mut self) -> fmt::Result {
        let ranges: Vec<_> = self
            .proto
            .slice_dimensions
            .iter()
            .map(|r| match r.stride {
                1 => format!("[{}:{}]", r.start, r.limit),
                stride => format!("[{}:{}:{stride}]", r.start, r.limit),
            })
            .collect();
        self.put("slice", format_args!("{{{}}}", Joined(&ranges, ", ")))
    }

    fn dot(&mut self, numbers: Option<&DotDimensionNumbers>) -> fmt::Result {
        if let Some(d) = numbers {
            self.list("lhs_batch_dims", &d.lhs_batch_dimensions)?;
            self.list("lhs_contracting_dims", &d.lhs_contracting_dimensions)?;
            self.list("rhs_batch_dims", &d.rhs_batch_dimensions)?;
            self.list("rhs_contracting_dims", &d.rhs_contracting_dimensions)?;
        }
        self.precision()
    }

    fn ragged_dot(&mut self) -> fmt::Result {
        let numbers = self.proto.ragged_dot_dimension_numbers.as_option();
        self.dot(numbers.and_then(|n| n.dot_dimension_numbers.as_option()))?;
        let Some(numbers) = numbers else { return Ok(()) };
        self.list("lhs_ragged_dims", &numbers.lhs_ragged_dimensions)?;
        self.list("rhs_group_dims", &numbers.rhs_group_dimensions)
    }

    fn precision(&mut self) -> fmt::Result {
        let Some(config) = self.proto.precision_config.as_option() else { return Ok(()) };
        if config.operand_precision.iter().any(|&p| p != 0) {
            let named: Vec<_> = config.operand_precision.iter().map(|&p| choice(p, &tables::PRECISIONS)).collect();
            self.put("operand_precision", Braces(&named))?;
        }
        if config.algorithm == 0 {
            Ok(())
        } else {
            self.put("algorithm", choice(config.algorithm, &tables::DOT_ALGORITHMS))
        }
    }

    fn window(&mut self) -> fmt::Result {
        match self.proto.window.as_option() {
            Some(window) if !window.dimensions.is_empty() => {
                self.put("window", format_args!("{{{}}}", WindowText(window)))
            }
            _ => Ok(()),
        }
    }

    fn convolution(&mut self) -> fmt::Result {
        self.window()?;
        if let Some(numbers) = self.proto.convolution_dimension_numbers.as_option() {
            self.put("dim_labels", DimLabels(numbers))?;
        }
        for (key, count) in [
            ("feature_group_count", self.proto.feature_group_count),
            ("batch_group_count", self.proto.batch_group_count),
        ] {
            if count > 1 {
                self.put(key, count)?;
            }
        }
        self.precision()
    }

    fn gather(&mut self) -> fmt::Result {
        let p = self.proto;
        if let Some(d) = p.gather_dimension_numbers.as_option() {
            self.put("offset_dims", Braces(&d.offset_dims))?;
            self.put("collapsed_slice_dims", Braces(&d.collapsed_slice_dims))?;
            self.put("start_index_map", Braces(&d.start_index_map))?;
            self.list("operand_batching_dims", &d.operand_batching_dims)?;
            self.list("start_indices_batching_dims", &d.start_indices_batching_dims)?;
            self.put("index_vector_dim", d.index_vector_dim)?;
        }
        self.put("slice_sizes", Braces(&p.gather_slice_sizes))?;
        self.flag("indices_are_sorted", p.indices_are_sorted)
    }

    fn scatter(&mut self) -> fmt::Result {
        let p = self.proto;
        if let Some(d) = p.scatter_dimension_numbers.as_option() {
            self.put("update_window_dims", Braces(&d.update_window_dims))?;
            self.put("inserted_window_dims", Braces(&d.inserted_window_dims))?;
            self.put("scatter_dims_to_operand_dims", Braces(&d.scatter_dims_to_operand_dims))?;
            self.list("input_batching_dims", &d.input_batching_dims)?;
            self.list("scatter_indices_batching_dims", &d.scatter_indices_batching_dims)?;
            self.put("index_vector_dim", d.index_vector_dim)?;
        }
        self.flag("indices_are_sorted", p.indices_are_sorted)?;
        self.flag("unique_indices", p.unique_indices)
    }

    fn triangular_solve(&mut self) -> fmt::Result {
        let Some(options) = self.proto.triangular_solve_options.as_option() else { return Ok(()) };
        self.flag("left_side", options.left_side)?;
        self.flag("lower", options.lower)?;
        self.flag("unit_diagonal", options.unit_diagonal)?;
        self.put("transpose_a", choice(options.transpose_a, &tables::TRANSPOSES))
    }

    fn domain(&mut self) -> fmt::Result {
        let (entry, exit) = (self.proto.domain_entry_sharding.as_option(), self.proto.domain_exit_sharding.as_option());
        let (Some(entry), Some(exit)) = (entry, exit) else { return Ok(()) };
        // Text names the sides from the user's point of view, the wire from the operand's.
        let (entry, exit) = (ShardingText(exit), ShardingText(entry));
        self.put("domain", format_args!("{{kind=\"sharding\", entry={entry}, exit={exit}}}"))
    }

    fn channel(&mut self) -> fmt::Result {
        if self.proto.channel_id == 0 { Ok(()) } else { self.put("channel_id", self.proto.channel_id) }
    }

    fn collective(&mut self) -> fmt::Result {
        self.channel()?;
        self.put("replica_groups", Groups(self.proto))?;
        self.flag("constrain_layout", self.proto.constrain_layout)?;
        self.flag("use_global_device_ids", self.proto.use_global_device_ids)?;
        self.list("dimensions", &self.proto.dimensions)
    }

    fn custom_call(&mut self) -> fmt::Result {
        let p = self.proto;
        self.convolution()?;
        self.put("custom_call_target", Quoted(p.custom_call_target.as_bytes()))?;
        if p.constrain_layout {
            let shapes = p.operand_shapes_with_layout.iter();
            let shapes: Vec<_> =
                shapes.map(|shape| ShapeText { shape, layouts: Layouts::All, indices: false }).collect();
            self.put("operand_layout_constraints", format_args!("{{{}}}", Joined(&shapes, ", ")))?;
        }
        self.flag("custom_call_has_side_effect", p.custom_call_has_side_effect)?;
        if let Some(literal) = p.literal.as_option() {
            self.out.push_str(", literal=");
            let shape = literal.shape.as_option().unwrap_or(&self.instruction.shape.0);
            write!(self.out, "{} ", ShapeText { shape, layouts: Layouts::All, indices: false })?;
            write_literal(self.out, literal, shape, self.preset)?;
        }
        if p.padding_type != 0 {
            self.put("padding_type", choice(p.padding_type, &tables::PADDING_TYPES))?;
        }
        if p.custom_call_schedule != 0 {
            self.put("schedule", choice(p.custom_call_schedule, &tables::SCHEDULES))?;
        }
        self.operand_aliasing()?;
        // 0 stands for a writer that knew no versions, and means the original one.
        if p.custom_call_api_version > 1 {
            self.put("api_version", choice(p.custom_call_api_version, &tables::API_VERSIONS))?;
        }
        Ok(())
    }

    fn operand_aliasing(&mut self) -> fmt::Result {
        let p = self.proto;
        if !p.output_operand_aliasing.is_empty() {
            let entry = |a: &crate::proto::OutputOperandAliasing| {
                let (output, inside) = (Braces(&a.output_shape_index), Braces(&a.operand_shape_index));
                format!("{output}: ({}, {inside})", a.operand_index)
            };
            let pairs: Vec<_> = p.output_operand_aliasing.iter().map(entry).collect();
            self.put("output_to_operand_aliasing", format_args!("{{{}}}", Joined(&pairs, ", ")))?;
        }
        Ok(())
    }

    fn of_callees(&mut self, module: &Module, computation: &Computation) -> fmt::Result {
        use Opcode as O;
        let names = |module: &Module, called: &[crate::ComputationId]| -> Vec<String> {
            let name = |&c| module.computation(c).map_or_else(|| "?".to_owned(), |c| Name(&c.name).to_string());
            called.iter().map(|c| format!("%{}", name(c))).collect()
        };
        let callees = names(module, &self.instruction.called);
        match (self.instruction.opcode, callees.as_slice()) {
            (_, []) => Ok(()),
            (O::While, [body, condition]) => {
                self.put("condition", condition)?;
                self.put("body", body)
            }
            (O::SelectAndScatter, [select, scatter]) => {
                self.put("select", select)?;
                self.put("scatter", scatter)
            }
            (O::Conditional, [on_true, on_false]) if self.selector_is_pred(computation) => {
                self.put("true_computation", on_true)?;
                self.put("false_computation", on_false)
            }
            (O::Conditional, branches) => {
                self.put("branch_computations", format_args!("{{{}}}", Joined(branches, ", ")))
            }
            (O::Fusion | O::AsyncStart | O::AsyncUpdate | O::AsyncDone, [callee]) => self.put("calls", callee),
            (O::CustomCall, callees) => self.put("called_computations", format_args!("{{{}}}", Joined(callees, ", "))),
            (_, [callee]) => self.put("to_apply", callee),
            (_, callees) => self.put("called_computations", format_args!("{{{}}}", Joined(callees, ", "))),
        }
    }

    fn selector_is_pred(&self, computation: &Computation) -> bool {
        let selector = self.instruction.operands.first().and_then(|&id| computation.get(id));
        selector.is_some_and(|s| s.shape.element_type() == PrimitiveType::PRED)
    }

    fn of_any_opcode(&mut self) -> fmt::Result {
        let p = self.proto;
        if let Some(accuracy) = p.result_accuracy.as_option() {
            self.accuracy(accuracy)?;
        }
        if !p.async_execution_thread.is_empty() && p.async_execution_thread != "main" {
            self.put("async_execution_thread", Quoted(p.async_execution_thread.as_bytes()))?;
        }
        if let Some(sharding) = p.sharding.as_option() {
            self.put("sharding", ShardingText(sharding))?;
        }
        if let Some(attributes) = p.frontend_attributes.as_option().filter(|a| !a.map.is_empty()) {
            self.put("frontend_attributes", Frontend(attributes))?;
        }
        Ok(())
    }

    fn control(&mut self, computation: &Computation) -> fmt::Result {
        if !self.instruction.control_predecessors.is_empty() {
            let name = |&id: &_| computation.get(id).map_or_else(|| "?".to_owned(), |i| Name(&i.name).to_string());
            let names: Vec<_> =
                self.instruction.control_predecessors.iter().map(|id| format!("%{}", name(id))).collect();
            self.put("control-predecessors", format_args!("{{{}}}", Joined(&names, ", ")))?;
        }
        Ok(())
    }

    fn metadata(&mut self) -> fmt::Result {
        if let Some(metadata) = self.proto.metadata.as_option() {
            let metadata = Metadata { metadata, preset: self.preset }.to_string();
            if !metadata.is_empty() {
                self.put("metadata", format_args!("{{{metadata}}}"))?;
            }
        }
        Ok(())
    }

    fn config(&mut self) -> fmt::Result {
        let p = self.proto;
        if !p.backend_config.is_empty() {
            self.put("backend_config", QuotedOrDict(&p.backend_config))?;
        }
        let mut unknown: Vec<_> = self.instruction.unknown_fields().collect();
        if p.sparsity_config.as_deref().is_some_and(|config| !config.is_empty()) {
            unknown.push(98);
        }
        if unknown.is_empty() { Ok(()) } else { write!(self.out, " /*unknown fields {}*/", Joined(&unknown, ", ")) }
    }

    fn accuracy(&mut self, accuracy: &crate::proto::ResultAccuracy) -> fmt::Result {
        use super::float::Double;
        if let Some(t) = accuracy.tolerance.as_option() {
            let (atol, rtol) = (Double(t.atol), Double(t.rtol));
            let tolerance = format_args!("{{tolerance={{atol={atol},rtol={rtol},ulps={}}}}}", t.ulps);
            return self.put("result_accuracy", tolerance);
        }
        match accuracy.mode {
            Some(1) => self.put("result_accuracy", "{mode=highest}"),
            _ => Ok(()),
        }
    }
}

/// `{key="value",other={dictionary}}`
pub(super) struct Frontend<'a>(pub(super) &'a FrontendAttributes);

impl Display for Frontend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.0.map.iter();
        let entries: Vec<_> = entries.map(|e| format!("{}={}", e.key, QuotedOrDict(e.value.as_bytes()))).collect();
        write!(f, "{}", Braces(&entries))
    }
}

/// `op_type="T" op_name="n"`, empty where nothing is known.
struct Metadata<'a> {
    metadata: &'a OpMetadata,
    preset: Preset,
}

impl Display for Metadata<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.metadata;
        let mut parts = Vec::new();
        let mut put = |key: &str, value: &str| {
            if !value.is_empty() {
                parts.push(format!("{key}={}", Quoted(value.as_bytes())));
            }
        };
        if self.preset == Preset::Snapshot {
            put("op_name", &m.op_name);
            return write!(f, "{}", Joined(&parts, " "));
        }
        put("op_type", &m.op_type);
        put("op_name", &m.op_name);
        put("source_file", &m.source_file);
        put("deduplicated_name", &m.deduplicated_name);
        put("scheduling_name", &m.scheduling_name);
        for (key, line) in [
            ("source_line", m.source_line),
            ("source_end_line", m.source_end_line),
            ("source_column", m.source_column),
            ("source_end_column", m.source_end_column),
        ] {
            if line != 0 {
                parts.push(format!("{key}={line}"));
            }
        }
        write!(f, "{}", Joined(&parts, " "))
    }
}
