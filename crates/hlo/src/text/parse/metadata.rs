//! What a front end says about an instruction, and the tables of stack frames that it points into.

use buffa::Message;

use super::cursor::{Cursor, Result};
use crate::proto::frontend_attributes::Entry;
use crate::proto::stack_frame_index_proto::{FileLocation, StackFrame};
use crate::proto::{FrontendAttributes, OpMetadata, StackFrameIndexProto};

/// `{op_type="T" op_name="n" source_line=3}`
pub(super) fn metadata(c: &mut Cursor<'_>) -> Result<OpMetadata> {
    c.expect("{")?;
    let mut metadata = OpMetadata::default();
    while !c.eat("}") {
        let start = *c;
        let key = c.word("metadata or `}`")?;
        c.expect("=")?;
        match key {
            "op_type" => metadata.op_type = c.text()?,
            "op_name" => metadata.op_name = c.text()?,
            "source_file" => metadata.source_file = c.text()?,
            "deduplicated_name" => metadata.deduplicated_name = c.text()?,
            "scheduling_name" => metadata.scheduling_name = c.text()?,
            "source_line" => metadata.source_line = c.integer()?,
            "source_end_line" => metadata.source_end_line = c.integer()?,
            "source_column" => metadata.source_column = c.integer()?,
            "source_end_column" => metadata.source_end_column = c.integer()?,
            "stack_frame_id" => metadata.stack_frame_id = c.integer()?,
            _ => return Err(start.refused("metadata of this name is not held here")),
        }
    }
    Ok(metadata)
}

/// `{key="value",other={dictionary}}`
pub(super) fn frontend_attributes(c: &mut Cursor<'_>) -> Result<FrontendAttributes> {
    let map = c.list("{", "}", |c| {
        let start = *c;
        let key = c.until('=', "`key=value`")?.to_owned();
        if key.bytes().any(|b| matches!(b, b'{' | b'}' | b',' | b'\n')) {
            return Err(start.expected("`key=value`"));
        }
        let value = c.quoted_or_dict()?;
        let value = String::from_utf8(value).map_err(|_| start.refused("the value is not UTF-8"))?;
        Ok(Entry { key, value, ..Default::default() })
    })?;
    Ok(FrontendAttributes { map, ..Default::default() })
}

/// The tables behind the module's first line, encoded as the module carries them; `None` where there are none.
pub(super) fn stack_frames(c: &mut Cursor<'_>) -> Result<Option<Vec<u8>>> {
    let index = StackFrameIndexProto {
        file_names: table(c, "FileNames", Cursor::text)?,
        function_names: table(c, "FunctionNames", Cursor::text)?,
        file_locations: table(c, "FileLocations", location)?,
        stack_frames: table(c, "StackFrames", frame)?,
        ..Default::default()
    };
    Ok(Some(index.encode_to_vec()).filter(|encoded| !encoded.is_empty()))
}

/// A table's rows, which begin with their numbers, 1 and on; none where the table is not there.
fn table<'a, T>(c: &mut Cursor<'a>, name: &str, mut row: impl FnMut(&mut Cursor<'a>) -> Result<T>) -> Result<Vec<T>> {
    let mut rows = Vec::new();
    if !c.eat_word(name) {
        return Ok(rows);
    }
    while c.peek().is_some_and(|b| b.is_ascii_digit()) {
        let start = *c;
        let next = rows.len() + 1;
        if c.integer::<usize>()? != next {
            return Err(start.expected(format!("row {next}")));
        }
        rows.push(row(c)?);
    }
    Ok(rows)
}

fn location(c: &mut Cursor<'_>) -> Result<FileLocation> {
    let names = ["file_name_id", "function_name_id", "line", "end_line", "column", "end_column"];
    let [file_name_id, function_name_id, line, end_line, column, end_column] = properties(c, names)?;
    Ok(FileLocation { file_name_id, function_name_id, line, end_line, column, end_column, ..Default::default() })
}

fn frame(c: &mut Cursor<'_>) -> Result<StackFrame> {
    let [file_location_id, parent] = properties(c, ["file_location_id", "parent_frame_id"])?;
    // Text counts parents from 1, so that there is one for "none".
    Ok(StackFrame { file_location_id, parent_frame_id: parent.saturating_sub(1), ..Default::default() })
}

/// `{line=8 column=2}`: the values in the order of `names`, 0 where one is not given.
fn properties<const N: usize>(c: &mut Cursor<'_>, names: [&str; N]) -> Result<[i32; N]> {
    let mut values = [0; N];
    c.expect("{")?;
    while !c.eat("}") {
        let start = *c;
        let key = c.word("a property or `}`")?;
        let field = values.iter_mut().zip(names).find(|(_, name)| *name == key);
        let Some((value, _)) = field else { return Err(start.refused("a property of this name is not held here")) };
        c.expect("=")?;
        *value = c.integer()?;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_stack_frames_are_read() {
        let text = "FileNames\n1 \"a.py\"\n\nFunctionNames\n1 \"f\"\n2 \"g\"\n\nFileLocations\n\
                    1 {file_name_id=1 function_name_id=2 line=8 end_line=9 column=2 end_column=5}\n\n\
                    StackFrames\n1 {file_location_id=1 parent_frame_id=1}\n2 {file_location_id=1 parent_frame_id=2}\n";
        let bytes = stack_frames(&mut Cursor::new(text)).unwrap().unwrap();
        let index = StackFrameIndexProto::decode_from_slice(&bytes).unwrap();
        assert_eq!((index.file_names.as_slice(), index.function_names.len()), (&["a.py".to_owned()][..], 2));
        let location = &index.file_locations[0];
        assert_eq!((location.line, location.end_line, location.column, location.end_column), (8, 9, 2, 5));
        assert_eq!(index.stack_frames.iter().map(|f| f.parent_frame_id).collect::<Vec<_>>(), [0, 1]);
        assert!(stack_frames(&mut Cursor::new("%add {")).unwrap().is_none());
        for text in ["FileNames 2 \"a\"", "StackFrames 1 {color=1}", "FileLocations 1 {line=a}", "FileNames 1 a"] {
            assert!(stack_frames(&mut Cursor::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn metadata_that_is_not_held_is_refused() {
        let error = metadata(&mut Cursor::new("{op_name=\"a\" profile_type={1}}")).unwrap_err().to_string();
        assert!(error.contains("`profile_type`: metadata of this name"), "{error}");
        assert!(frontend_attributes(&mut Cursor::new("{a}")).is_err());
        let read = frontend_attributes(&mut Cursor::new(r#"{a.b="c\"",d={"x": {}}}"#)).unwrap();
        let pairs: Vec<_> = read.map.iter().map(|e| (e.key.as_str(), e.value.as_str())).collect();
        assert_eq!(pairs, [("a.b", "c\""), ("d", r#"{"x": {}}"#)]);
    }
}
