//! Windows and dimension numbers.

use std::fmt::{self, Display};

use super::quote::Joined;
use crate::proto::{ConvolutionDimensionNumbers, PaddingConfig, Window, WindowDimension};

/// `size=3x3 stride=2x2 pad=0_1x0_1`; what has its default in every dimension is left out.
pub(super) struct WindowText<'a>(pub(super) &'a Window);

impl Display for WindowText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = &self.0.dimensions;
        let list = |f: &mut fmt::Formatter<'_>, key, default: i64, field: fn(&WindowDimension) -> i64| {
            let values: Vec<_> = all.iter().map(field).collect();
            if values.iter().all(|&v| v == default) {
                return Ok(());
            }
            write!(f, " {key}={}", Joined(&values, "x"))
        };
        let sizes: Vec<_> = all.iter().map(|d| d.size).collect();
        write!(f, "size={}", Joined(&sizes, "x"))?;
        list(f, "stride", 1, |d| d.stride)?;
        if all.iter().any(|d| d.padding_low != 0 || d.padding_high != 0) {
            let pads: Vec<_> = all.iter().map(|d| format!("{}_{}", d.padding_low, d.padding_high)).collect();
            write!(f, " pad={}", Joined(&pads, "x"))?;
        }
        list(f, "lhs_dilate", 1, |d| d.base_dilation)?;
        list(f, "rhs_dilate", 1, |d| d.window_dilation)?;
        list(f, "rhs_reversal", 0, |d| d.window_reversal.into())
    }
}

/// `1_1_0x0_1_1`: low, high and interior padding of each dimension.
pub(super) struct PaddingText<'a>(pub(super) &'a PaddingConfig);

impl Display for PaddingText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interior = self.0.dimensions.iter().any(|d| d.interior_padding != 0);
        for (n, d) in self.0.dimensions.iter().enumerate() {
            write!(f, "{}{}_{}", if n > 0 { "x" } else { "" }, d.edge_padding_low, d.edge_padding_high)?;
            if interior {
                write!(f, "_{}", d.interior_padding)?;
            }
        }
        Ok(())
    }
}

/// `b01f_01io->b01f`: which dimension of input, kernel and output is what.
pub(super) struct DimLabels<'a>(pub(super) &'a ConvolutionDimensionNumbers);

impl Display for DimLabels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let d = self.0;
        let labels = |named: [(char, i64); 2], spatial: &[i64]| {
            let mut all: Vec<_> = named.map(|(label, at)| (at, label.to_string())).into();
            all.extend(spatial.iter().enumerate().map(|(n, &at)| (at, n.to_string())));
            all.sort();
            all.into_iter().map(|(_, label)| label).collect::<String>()
        };
        let input = [('b', d.input_batch_dimension), ('f', d.input_feature_dimension)];
        let kernel = [('i', d.kernel_input_feature_dimension), ('o', d.kernel_output_feature_dimension)];
        let output = [('b', d.output_batch_dimension), ('f', d.output_feature_dimension)];
        let input = labels(input, &d.input_spatial_dimensions);
        let kernel = labels(kernel, &d.kernel_spatial_dimensions);
        write!(f, "{input}_{kernel}->{}", labels(output, &d.output_spatial_dimensions))
    }
}
