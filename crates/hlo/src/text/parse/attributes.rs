//! What follows an instruction's operands: one value reader per attribute, and which of them an operation takes.
//!
//! An attribute that the operation does not have in `tables`, a second one of the same name and a missing one are
//! errors: nothing is passed over.

use super::super::tables;
use super::computation::{Draft, Parser, Scope};
use super::cursor::{Cursor, Result};
use super::{dimensions, float, literal, metadata, shape, sharding};
use crate::ir::{ComputationId, Opcode};
use crate::proto::{
    CholeskyOptions, DotDimensionNumbers, GatherDimensionNumbers, ParameterReplication, ResultAccuracy,
    ScatterDimensionNumbers, result_accuracy::Tolerance,
};

impl<'a> Parser<'a> {
    /// Reads every attribute of an instruction whose opcode stands at `start`.
    pub(super) fn attributes(&mut self, draft: &mut Draft<'a>, scope: &Scope<'a>, start: &Cursor<'a>) -> Result<()> {
        let (required, optional) = tables::attributes(draft.opcode);
        let thread = draft.sugar.then_some("async_execution_thread");
        let mut seen: Vec<&str> = Vec::new();
        while self.c.eat(",") {
            let at = self.c;
            let key = self.c.word("an attribute")?;
            let known = || required.iter().chain(optional).chain(&tables::COMMON).copied().chain(thread);
            if !known().any(|name| name == key) {
                let names: Vec<_> = known().collect();
                let takes = names.join(", ");
                return Err(at.refused(format!("{} has no such attribute here; it takes {takes}", draft.opcode)));
            }
            if seen.contains(&key) {
                return Err(at.refused("the attribute is given twice"));
            }
            seen.push(key);
            self.c.expect("=")?;
            if !self.common(key, draft, scope)? && !self.callees(key, draft)? && !plain(&mut self.c, key, draft)? {
                return Err(at.refused("the attribute has no reader"));
            }
        }
        match required.iter().find(|key| !seen.contains(*key)) {
            Some(missing) => Err(start.refused(format!("the attribute {missing} is missing"))),
            None => Ok(()),
        }
    }

    /// Attributes that any instruction may have. Says whether `key` is one.
    fn common(&mut self, key: &str, draft: &mut Draft<'a>, scope: &Scope<'a>) -> Result<bool> {
        let (c, p) = (&mut self.c, &mut draft.proto);
        match key {
            "sharding" => p.sharding = sharding::sharding(c)?.into(),
            "frontend_attributes" => p.frontend_attributes = metadata::frontend_attributes(c)?.into(),
            "metadata" => p.metadata = metadata::metadata(c)?.into(),
            "backend_config" => p.backend_config = c.quoted_or_dict()?,
            "result_accuracy" => p.result_accuracy = accuracy(c)?.into(),
            "async_execution_thread" => p.async_execution_thread = c.text()?,
            "control-predecessors" => {
                draft.control = c.list("{", "}", |c| scope.instruction(c))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Attributes that name computations. Says whether `key` is one.
    fn callees(&mut self, key: &'a str, draft: &mut Draft<'a>) -> Result<bool> {
        let called = match key {
            "condition" | "body" | "select" | "scatter" | "true_computation" | "false_computation" | "calls"
            | "to_apply" => vec![self.callee(key, draft.name)?],
            "branch_computations" | "called_computations" => self.callee_list(key, draft.name)?,
            _ => return Ok(false),
        };
        draft.called.push((key, called));
        Ok(true)
    }

    fn callee_list(&mut self, key: &str, caller: &str) -> Result<Vec<ComputationId>> {
        self.c.expect("{")?;
        let mut called = Vec::new();
        while !self.c.eat("}") {
            if !called.is_empty() {
                self.c.expect(",")?;
            }
            called.push(self.callee(key, caller)?);
        }
        Ok(called)
    }
}

/// Attributes whose value names nothing. Says whether `key` is one.
fn plain(c: &mut Cursor<'_>, key: &str, draft: &mut Draft<'_>) -> Result<bool> {
    let (opcode, p) = (draft.opcode, &mut draft.proto);
    match key {
        "dimensions" => p.dimensions = c.integers()?,
        "iota_dimension" => p.dimensions = vec![c.integer()?],
        "is_stable" => p.is_stable = c.boolean()?,
        "index" => p.tuple_index = c.integer()?,
        "parameter_replication" => {
            let replicated_at_leaf_buffers = c.list("{", "}", Cursor::boolean)?;
            p.parameter_replication = ParameterReplication { replicated_at_leaf_buffers, ..Default::default() }.into();
        }
        "direction" => p.comparison_direction = named(c, &tables::DIRECTIONS)?,
        "type" => p.comparison_type = named(c, &tables::COMPARISON_TYPES)?,
        "slice" => p.slice_dimensions = dimensions::slices(c)?,
        "dynamic_slice_sizes" => p.dynamic_slice_sizes = c.integers()?,
        "padding" => p.padding_config = dimensions::padding(c)?.into(),
        "window" => p.window = dimensions::window(c)?.into(),
        "dim_labels" => p.convolution_dimension_numbers = dimensions::dim_labels(c)?.into(),
        "feature_group_count" => p.feature_group_count = c.integer()?,
        "batch_group_count" => p.batch_group_count = c.integer()?,
        "operand_precision" => {
            let precision = c.list("{", "}", |c| c.choice(&tables::PRECISIONS))?;
            p.precision_config.get_or_insert_default().operand_precision = precision;
        }
        "algorithm" if opcode == Opcode::RngBitGenerator => p.rng_algorithm = c.choice(&tables::RNG_ALGORITHMS)?,
        "algorithm" => p.precision_config.get_or_insert_default().algorithm = c.choice(&tables::DOT_ALGORITHMS)?,
        "slice_sizes" => p.gather_slice_sizes = c.integers()?,
        "indices_are_sorted" => p.indices_are_sorted = c.boolean()?,
        "unique_indices" => p.unique_indices = c.boolean()?,
        "exponent_bits" => p.exponent_bits = c.integer()?,
        "mantissa_bits" => p.mantissa_bits = c.integer()?,
        "fft_type" => p.fft_type = c.choice(&tables::FFT_TYPES)?,
        "fft_length" => p.fft_length = c.integers()?,
        "distribution" => p.distribution = c.choice(&tables::DISTRIBUTIONS)?,
        "delta" => p.delta = c.integer()?,
        "lower" if opcode == Opcode::Cholesky => {
            p.cholesky_options = CholeskyOptions { lower: c.boolean()?, ..Default::default() }.into();
        }
        "lower" => p.triangular_solve_options.get_or_insert_default().lower = c.boolean()?,
        "left_side" => p.triangular_solve_options.get_or_insert_default().left_side = c.boolean()?,
        "unit_diagonal" => p.triangular_solve_options.get_or_insert_default().unit_diagonal = c.boolean()?,
        "transpose_a" => {
            p.triangular_solve_options.get_or_insert_default().transpose_a = c.choice(&tables::TRANSPOSES)?;
        }
        "epsilon" => p.epsilon = float::single(c)?,
        "feature_index" => p.feature_index = c.integer()?,
        "k" => p.k = c.integer()?,
        "largest" => p.largest = c.boolean()?,
        "kind" => p.fusion_kind = named(c, &tables::FUSION_KINDS)?,
        "custom_call_target" => p.custom_call_target = c.text()?,
        "custom_call_has_side_effect" => p.custom_call_has_side_effect = c.boolean()?,
        "operand_layout_constraints" => {
            p.constrain_layout = true;
            p.operand_shapes_with_layout = c.list("{", "}", |c| Ok(shape::shape(c)?.to_proto()))?;
        }
        "literal" => {
            let shape = shape::shape(c)?;
            p.literal = literal::literal(c, &shape)?.into();
        }
        "padding_type" => p.padding_type = c.choice(&tables::PADDING_TYPES)?,
        "schedule" => p.custom_call_schedule = c.choice(&tables::SCHEDULES)?,
        "api_version" => p.custom_call_api_version = c.choice(&tables::API_VERSIONS)?,
        "output_to_operand_aliasing" => p.output_operand_aliasing = sharding::output_operand_aliasing(c)?,
        "infeed_config" => p.infeed_config = c.quoted()?,
        "outfeed_config" => p.outfeed_config = c.quoted()?,
        "outfeed_shape" => p.outfeed_shape = shape::shape(c)?.to_proto().into(),
        "channel_id" => p.channel_id = c.integer()?,
        "is_host_transfer" => p.is_host_transfer = c.boolean()?,
        "cross_program_prefetch_index" => p.cross_program_prefetch_index = Some(c.integer()?),
        "is_composite" => p.is_composite = c.boolean()?,
        "constrain_layout" => p.constrain_layout = c.boolean()?,
        "use_global_device_ids" => p.use_global_device_ids = c.boolean()?,
        "replica_groups" => sharding::replica_groups(c, p)?,
        "source_target_pairs" => p.source_target_pairs = sharding::source_target_pairs(c)?,
        "domain" => {
            c.expect("{")?;
            c.expect("kind")?;
            c.expect("=")?;
            c.expect("\"sharding\"")?;
            c.expect(",")?;
            c.expect("entry")?;
            c.expect("=")?;
            // Text names the sides from the user's point of view, the wire from the operand's.
            p.domain_exit_sharding = sharding::sharding(c)?.into();
            c.expect(",")?;
            c.expect("exit")?;
            c.expect("=")?;
            p.domain_entry_sharding = sharding::sharding(c)?.into();
            c.expect("}")?;
        }
        _ if opcode == Opcode::Gather => {
            return gather(c, key, p.gather_dimension_numbers.get_or_insert_default());
        }
        _ if opcode == Opcode::Scatter => {
            return scatter(c, key, p.scatter_dimension_numbers.get_or_insert_default());
        }
        "lhs_ragged_dims" => {
            p.ragged_dot_dimension_numbers.get_or_insert_default().lhs_ragged_dimensions = c.integers()?;
        }
        "rhs_group_dims" => {
            p.ragged_dot_dimension_numbers.get_or_insert_default().rhs_group_dimensions = c.integers()?;
        }
        _ if opcode == Opcode::RaggedDot => {
            let ragged = p.ragged_dot_dimension_numbers.get_or_insert_default();
            return dot(c, key, ragged.dot_dimension_numbers.get_or_insert_default());
        }
        _ => return dot(c, key, p.dot_dimension_numbers.get_or_insert_default()),
    }
    Ok(true)
}

fn named(c: &mut Cursor<'_>, names: &[&'static str]) -> Result<String> {
    Ok(tables::choice(c.choice(names)?, names).to_owned())
}

fn dot(c: &mut Cursor<'_>, key: &str, d: &mut DotDimensionNumbers) -> Result<bool> {
    let field = match key {
        "lhs_batch_dims" => &mut d.lhs_batch_dimensions,
        "lhs_contracting_dims" => &mut d.lhs_contracting_dimensions,
        "rhs_batch_dims" => &mut d.rhs_batch_dimensions,
        "rhs_contracting_dims" => &mut d.rhs_contracting_dimensions,
        _ => return Ok(false),
    };
    *field = c.integers()?;
    Ok(true)
}

fn gather(c: &mut Cursor<'_>, key: &str, d: &mut GatherDimensionNumbers) -> Result<bool> {
    let field = match key {
        "offset_dims" => &mut d.offset_dims,
        "collapsed_slice_dims" => &mut d.collapsed_slice_dims,
        "start_index_map" => &mut d.start_index_map,
        "operand_batching_dims" => &mut d.operand_batching_dims,
        "start_indices_batching_dims" => &mut d.start_indices_batching_dims,
        "index_vector_dim" => {
            d.index_vector_dim = c.integer()?;
            return Ok(true);
        }
        _ => return Ok(false),
    };
    *field = c.integers()?;
    Ok(true)
}

fn scatter(c: &mut Cursor<'_>, key: &str, d: &mut ScatterDimensionNumbers) -> Result<bool> {
    let field = match key {
        "update_window_dims" => &mut d.update_window_dims,
        "inserted_window_dims" => &mut d.inserted_window_dims,
        "scatter_dims_to_operand_dims" => &mut d.scatter_dims_to_operand_dims,
        "input_batching_dims" => &mut d.input_batching_dims,
        "scatter_indices_batching_dims" => &mut d.scatter_indices_batching_dims,
        "index_vector_dim" => {
            d.index_vector_dim = c.integer()?;
            return Ok(true);
        }
        _ => return Ok(false),
    };
    *field = c.integers()?;
    Ok(true)
}

/// `{mode=highest}` or `{tolerance={atol=0.5,rtol=0.25,ulps=2}}`
fn accuracy(c: &mut Cursor<'_>) -> Result<ResultAccuracy> {
    c.expect("{")?;
    let mut accuracy = ResultAccuracy::default();
    if c.eat_word("mode") {
        c.expect("=")?;
        accuracy.mode = Some(c.choice(&["default", "highest"])?);
    } else if c.eat_word("tolerance") {
        for part in ["=", "{", "atol", "="] {
            c.expect(part)?;
        }
        let atol = float::double(c)?;
        for part in [",", "rtol", "="] {
            c.expect(part)?;
        }
        let rtol = float::double(c)?;
        for part in [",", "ulps", "="] {
            c.expect(part)?;
        }
        let ulps = c.integer()?;
        c.expect("}")?;
        accuracy.tolerance = Tolerance { atol, rtol, ulps, ..Default::default() }.into();
    } else {
        return Err(c.expected("`mode` or `tolerance`"));
    }
    c.expect("}")?;
    Ok(accuracy)
}
