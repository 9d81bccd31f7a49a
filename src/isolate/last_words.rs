//! What a process said last.
//!
//! XLA's check failures are one line with a stack trace after it; that line is what a person wants to read. Other
//! ends have no mark, so the last lines are taken.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much of the end of the output is looked at.
const TAIL: u64 = 64 * 1024;
/// Lines that are taken where none is a check failure.
const LINES: usize = 3;
/// Characters that a message may have.
const LENGTH: usize = 800;

/// The last words in a file of output; empty where there are none.
pub(super) fn of(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let length = file.metadata().map_or(0, |m| m.len());
        // Fails only where the file is no file; what could be read is said then.
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(TAIL)));
        let _ = file.take(TAIL).read_to_end(&mut bytes);
    }
    choose(&String::from_utf8_lossy(&bytes))
}

fn choose(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let chosen = match lines.iter().position(|l| is_fatal(l)) {
        Some(fatal) => {
            let said = lines.iter().skip(fatal).take_while(|l| !l.starts_with("***"));
            said.take(LINES).map(|l| without_time(l)).collect()
        }
        None => lines.iter().skip(lines.len().saturating_sub(LINES)).copied().collect::<Vec<_>>(),
    };
    let joined = chosen.join(" ");
    match joined.char_indices().nth(LENGTH) {
        Some((cut, _)) => format!("{} ...", joined.get(..cut).unwrap_or_default()),
        None => joined,
    }
}

/// Lines of level FATAL begin with `F` and the date (`F0000 00:00:1758.5 1234 literal.cc:80] Check failed: ...`).
fn is_fatal(line: &str) -> bool {
    line.contains("Check failed") || without_time(line) != line
}

/// A fatal line from the source file on: level, time and thread are of no use to anybody.
fn without_time(line: &str) -> &str {
    let date = line.strip_prefix('F').and_then(|l| l.get(..4)).filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
    let message = date.and_then(|_| line.splitn(4, char::is_whitespace).nth(3));
    message.map(str::trim_start).filter(|m| m.contains("] ")).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_failure_is_chosen_without_its_stack_trace() {
        let text = "I0000 00:00:1.5 7 cpu_client.cc:470] created\nF0000 00:00:1.6 7 shape.cc:80] Check failed: a == b \n\
                    *** Check failure stack trace: ***\n    @ 0x7f absl::Die()\n    @ 0x7e main\n";
        assert_eq!(choose(text), "shape.cc:80] Check failed: a == b");
        let other = "start\nF1124 a few words\nCheck failed: no source\nend\n";
        assert_eq!(choose(other), "Check failed: no source end");
    }

    #[test]
    fn without_one_the_last_lines_are_chosen() {
        assert_eq!(choose("a\nb\n\nc\nd\n"), "b c d");
        assert_eq!(choose(""), "");
        let long = choose(&"é".repeat(5000));
        assert!(long.ends_with("é ...") && long.chars().count() == LENGTH + 4);
    }

    #[test]
    fn only_the_end_of_a_long_output_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "word\n".repeat(100_000) + "the end\n").unwrap();
        assert_eq!(of(file.path()), "word word the end");
        assert_eq!(of(Path::new("/nowhere")), "");
    }
}
