//! Which array feeds which input.
//!
//! An array feeds the input of its name, or the one whose tree path ends with it: `image` and `batch.image` both feed
//! `batch['image']`. What would fit several inputs feeds none.

/// For each input its array, by number; or why that cannot be told.
///
/// An array that fits no input is left over, which is no error.
pub(super) fn assign(inputs: &[&str], arrays: &[String]) -> Result<Vec<usize>, Mismatch> {
    // Nothing to tell apart.
    if let ([_], [_]) = (inputs, arrays) {
        return Ok(vec![0]);
    }
    let fits = |array: &String| -> Vec<usize> { candidates(inputs, array) };
    (0..inputs.len())
        .map(|input| {
            let named = arrays.iter().position(|array| inputs.get(input) == Some(&array.as_str()));
            let found: Vec<usize> = match named {
                Some(array) => vec![array],
                None => (0..).zip(arrays).filter(|(_, a)| fits(a).contains(&input)).map(|(n, _)| n).collect(),
            };
            match found.as_slice() {
                &[array] if arrays.get(array).is_some_and(|a| fits(a).len() == 1) => Ok(array),
                _ => Err(Mismatch { input, arrays: found }),
            }
        })
        .collect()
}

/// The only input that an array can feed, if it is one.
pub(super) fn only(inputs: &[&str], array: &str) -> Option<usize> {
    match candidates(inputs, array).as_slice() {
        &[input] => Some(input),
        _ => None,
    }
}

/// An input without one array of its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    /// The input.
    pub(super) input: usize,
    /// Arrays that may be meant: none, several, or one that fits other inputs as well.
    pub(super) arrays: Vec<usize>,
}

/// Inputs that an array can feed by its name.
fn candidates(inputs: &[&str], array: &str) -> Vec<usize> {
    if let Some(exact) = inputs.iter().position(|input| *input == array) {
        return vec![exact];
    }
    let wanted = components(array);
    let ends = |input: &&str| !wanted.is_empty() && components(input).ends_with(&wanted);
    (0..).zip(inputs).filter(|(_, input)| ends(input)).map(|(n, _)| n).collect()
}

/// The components of a tree path as JAX prints it, or as people join them with dots and slashes.
fn components(path: &str) -> Vec<&str> {
    path.split(['[', ']', '\'', '"', '.', '/']).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(inputs: &[&str], arrays: &[&str], expected: Result<&[usize], (usize, &[usize])>) {
        let arrays: Vec<String> = arrays.iter().map(|&a| a.to_owned()).collect();
        let expected =
            expected.map(<[usize]>::to_vec).map_err(|(input, arrays)| Mismatch { input, arrays: arrays.to_vec() });
        assert_eq!(assign(inputs, &arrays), expected, "{inputs:?} from {arrays:?}");
    }

    #[test]
    fn arrays_feed_inputs_that_end_with_their_name() {
        let batch = &["batch['image']", "batch['label']"];
        check(batch, &["label", "image"], Ok(&[1, 0]));
        check(batch, &["batch['label']", "batch.image", "id"], Ok(&[1, 0]));
        check(batch, &["batch/label", "image"], Ok(&[1, 0]));
        check(&["x", "y"], &["y", "x"], Ok(&[1, 0]));
        check(&["batch[0]", "batch[1]"], &["0", "1"], Ok(&[0, 1]));
        check(&["batch.x.w", "batch.y.w"], &["x.w", "y.w"], Ok(&[0, 1]));
        check(&["batch.image"], &["arr_0"], Ok(&[0]));
        check(&["batch.image"], &["id", "image"], Ok(&[1]));
        // The full name of one and the end of the other.
        check(&["x", "batch['x']"], &["x", "batch.x"], Ok(&[0, 1]));
    }

    #[test]
    fn what_is_missing_or_ambiguous_is_not_guessed() {
        let batch = &["batch['image']", "batch['label']"];
        check(batch, &["image"], Err((1, &[])));
        check(batch, &["arr_0", "arr_1"], Err((0, &[])));
        check(batch, &["image", "batch.image", "label"], Err((0, &[0, 1])));
        check(&["a['x']", "b['x']"], &["x", "b.x"], Err((0, &[0])));
        check(batch, &["mage", "label"], Err((0, &[])));
        assert_eq!(only(batch, "image"), Some(0));
        assert_eq!(only(&["a['x']", "b['x']"], "x"), None);
    }
}
