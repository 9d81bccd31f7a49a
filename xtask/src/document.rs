//! Documents with parts that are generated: what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The text with another content between the markers of that name.
pub(crate) fn between_markers(text: &str, name: &str, content: &str) -> Result<String> {
    let [begin, end] = ["begin", "end"].map(|which| format!("<!-- {which} {name} -->"));
    let (before, rest) = text.split_once(&begin).with_context(|| format!("the document has no line `{begin}`"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("the document has no line `{end}`"))?;
    Ok(format!("{before}{begin}\n\n{}\n\n{end}{after}", content.trim()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_markers_is_replaced_and_nothing_else() {
        let text = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y -->\n<!-- end y -->\n";
        let expected = "a\n<!-- begin x -->\n\nnew\n\n<!-- end x -->\nb\n<!-- begin y -->\n<!-- end y -->\n";
        assert_eq!(between_markers(text, "x", "new\n").unwrap(), expected);
        assert_eq!(between_markers(expected, "x", "new").unwrap(), expected);
        assert!(between_markers(text, "z", "").is_err());
    }
}
