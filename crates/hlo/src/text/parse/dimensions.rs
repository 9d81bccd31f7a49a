//! Windows, padding, slices and dimension numbers.

use super::cursor::{Cursor, Result};
use crate::proto::hlo_instruction_proto::SliceDimensions;
use crate::proto::padding_config::PaddingConfigDimension;
use crate::proto::{ConvolutionDimensionNumbers, PaddingConfig, Window, WindowDimension};

/// `{size=3x3 stride=2x2 pad=0_1x0_1}`
pub(super) fn window(c: &mut Cursor<'_>) -> Result<Window> {
    c.expect("{")?;
    let mut window = Window::default();
    while !c.eat("}") {
        let start = *c;
        let key = c.word("a property of a window or `}`")?;
        c.expect("=")?;
        let values = c.word("sizes as `2x2`")?;
        if key == "size" {
            let dimension =
                |_| WindowDimension { stride: 1, window_dilation: 1, base_dilation: 1, ..Default::default() };
            window.dimensions = values.split('x').map(dimension).collect();
        }
        if values.split('x').count() != window.dimensions.len() {
            return Err(start.refused("a window gives `size` first, and every property once per dimension"));
        }
        for (d, value) in window.dimensions.iter_mut().zip(values.split('x')) {
            let set = property(d, key, value);
            set.ok_or_else(|| {
                start.expected("size, stride, pad, lhs_dilate, rhs_dilate or rhs_reversal with numbers")
            })?;
        }
    }
    Ok(window)
}

fn property(d: &mut WindowDimension, key: &str, value: &str) -> Option<()> {
    match key {
        "size" => d.size = value.parse().ok()?,
        "stride" => d.stride = value.parse().ok()?,
        "pad" => {
            let (low, high) = value.split_once('_')?;
            (d.padding_low, d.padding_high) = (low.parse().ok()?, high.parse().ok()?);
        }
        "lhs_dilate" => d.base_dilation = value.parse().ok()?,
        "rhs_dilate" => d.window_dilation = value.parse().ok()?,
        "rhs_reversal" => d.window_reversal = matches!(value.parse().ok()?, 1u8),
        _ => return None,
    }
    Some(())
}

/// `1_1_0x0_1_1`: low, high and possibly interior padding of each dimension.
pub(super) fn padding(c: &mut Cursor<'_>) -> Result<PaddingConfig> {
    let start = *c;
    let text = c.word("padding as `0_1x0_1`")?;
    let dimension = |text: &str| {
        let numbers: Vec<i64> = text.split('_').map(|n| n.parse().ok()).collect::<Option<_>>()?;
        let (edge_padding_low, edge_padding_high, interior_padding) = match numbers.as_slice() {
            [low, high] => (*low, *high, 0),
            [low, high, interior] => (*low, *high, *interior),
            _ => return None,
        };
        Some(PaddingConfigDimension { edge_padding_low, edge_padding_high, interior_padding, ..Default::default() })
    };
    let dimensions: Option<Vec<_>> = text.split('x').map(dimension).collect();
    let dimensions = dimensions.ok_or_else(|| start.expected("padding as `0_1x0_1`"))?;
    Ok(PaddingConfig { dimensions, ..Default::default() })
}

/// `{[0:1], [0:3:2]}`
pub(super) fn slices(c: &mut Cursor<'_>) -> Result<Vec<SliceDimensions>> {
    c.list("{", "}", |c| {
        c.expect("[")?;
        let start = c.integer()?;
        c.expect(":")?;
        let limit = c.integer()?;
        let stride = if c.eat(":") { c.integer()? } else { 1 };
        c.expect("]")?;
        Ok(SliceDimensions { start, limit, stride, ..Default::default() })
    })
}

/// `b01f_01io->b01f`
pub(super) fn dim_labels(c: &mut Cursor<'_>) -> Result<ConvolutionDimensionNumbers> {
    let start = *c;
    // The arrow's shaft may stand in a word.
    let before = c.word("dimensions as `b01f_01io->b01f`")?;
    c.expect(">")?;
    let output = c.word("the output's dimensions")?;
    let split = before.strip_suffix('-').and_then(|b| b.split_once('_'));
    let read = || {
        let (input, kernel) = split?;
        let rank = input.len();
        let labels = |text: &str, named: [u8; 2]| -> Option<([i64; 2], Vec<i64>)> {
            let at = |label: u8| text.bytes().position(|b| b == label).and_then(|n| i64::try_from(n).ok());
            let spatial = (0..rank.saturating_sub(2)).map(|n| at(b'0'.checked_add(u8::try_from(n).ok()?)?));
            if text.len() != rank {
                return None;
            }
            Some(([at(named[0])?, at(named[1])?], spatial.collect::<Option<_>>()?))
        };
        let ([input_batch_dimension, input_feature_dimension], input_spatial_dimensions) = labels(input, *b"bf")?;
        let ([kernel_input_feature_dimension, kernel_output_feature_dimension], kernel_spatial_dimensions) =
            labels(kernel, *b"io")?;
        let ([output_batch_dimension, output_feature_dimension], output_spatial_dimensions) = labels(output, *b"bf")?;
        Some(ConvolutionDimensionNumbers {
            kernel_input_feature_dimension,
            kernel_output_feature_dimension,
            kernel_spatial_dimensions,
            input_batch_dimension,
            input_feature_dimension,
            output_batch_dimension,
            output_feature_dimension,
            input_spatial_dimensions,
            output_spatial_dimensions,
            ..Default::default()
        })
    };
    read().ok_or_else(|| start.expected("dimensions as `b01f_01io->b01f`, each once in input, kernel and output"))
}

#[cfg(test)]
mod tests {
    use super::super::super::dimensions::{DimLabels, PaddingText, WindowText};
    use super::*;

    #[test]
    fn windows_padding_and_labels_print_as_they_were_written() {
        for text in ["{size=3x3 stride=2x2 pad=0_1x-1_2 lhs_dilate=1x2 rhs_dilate=3x1 rhs_reversal=1x0}", "{size=4}"] {
            assert_eq!(format!("{{{}}}", WindowText(&window(&mut Cursor::new(text)).unwrap())), text);
        }
        for text in ["0_1x-2_3", "1_1_0x0_1_1"] {
            assert_eq!(PaddingText(&padding(&mut Cursor::new(text)).unwrap()).to_string(), text);
        }
        for text in ["b01f_01io->b01f", "bf_io->bf", "fb012_o12i0->012bf"] {
            assert_eq!(DimLabels(&dim_labels(&mut Cursor::new(text)).unwrap()).to_string(), text);
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["{stride=2}", "{size=2 stride=1x1}", "{size=2 color=3}", "{size=a}", "{size=2 pad=1}", "{size=2"] {
            assert!(window(&mut Cursor::new(text)).is_err(), "{text}");
        }
        for text in ["1", "1_2_3_4", "a_b", ""] {
            assert!(padding(&mut Cursor::new(text)).is_err(), "{text}");
        }
        for text in ["b01f_01io", "b01f->b01f", "b01f_01i->b01f", "b0f_01io->b01f", "bb1f_01io->b01f"] {
            assert!(dim_labels(&mut Cursor::new(text)).is_err(), "{text}");
        }
        for text in ["{[0]}", "{[0:1:2:3]}", "[0:1]", "{[0:1}"] {
            assert!(slices(&mut Cursor::new(text)).is_err(), "{text}");
        }
    }
}
