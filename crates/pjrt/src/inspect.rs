//! A look at a file before the dynamic linker sees it, for errors that say more than the linker's.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::LoadFailure;

/// Enough for the ELF header and the program headers behind it.
const HEAD_BYTES: usize = 4096;

/// The file that `path` leads to, if the linker may be able to load it.
///
/// The result is absolute, for a bare name would send the linker along its search path.
pub(crate) fn check(path: &Path) -> Result<PathBuf, LoadFailure> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => LoadFailure::Missing,
        _ => LoadFailure::Unreadable(error.to_string()),
    };
    let file = path.canonicalize().map_err(unreadable)?;
    if file.is_dir() {
        return Err(LoadFailure::NotALibrary { what: "a folder", hint: "name the library file inside it" });
    }
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let opened = File::open(&file).map_err(unreadable)?;
    let length = opened.metadata().map_err(unreadable)?.len();
    opened.take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(unreadable)?;
    if cfg!(target_os = "linux") {
        check_elf(&head, length, std::env::consts::ARCH)?;
    }
    Ok(file)
}

/// Judges the first bytes of a file of `length` bytes, on a machine whose processor Rust calls `arch`.
fn check_elf(head: &[u8], length: u64, arch: &str) -> Result<(), LoadFailure> {
    let not_a_library = |what, hint| Err(LoadFailure::NotALibrary { what, hint });
    let [0x7f, b'E', b'L', b'F', class, order, ..] = *head else {
        return match *head {
            [] => not_a_library("an empty file", "fetch the plugin again"),
            [b'P', b'K', 3 | 5, ..] => {
                not_a_library("a zip archive (a Python wheel is one)", "unpack it and name the library inside")
            }
            [0x1f, 0x8b, ..] => not_a_library("a gzip archive", "unpack it and name the library inside"),
            [b'M', b'Z', ..] => not_a_library("a Windows library", "fetch the plugin built for Linux"),
            [0xcf, 0xfa, 0xed, 0xfe, ..] | [0xca, 0xfe, 0xba, 0xbe, ..] => {
                not_a_library("a macOS library", "fetch the plugin built for Linux")
            }
            _ => {
                not_a_library("a file without an ELF header", "name the plugin's library file, as in `xla_cpu_pjrt.so`")
            }
        };
    };
    let half = |offset: usize| -> Option<u16> {
        let bytes = head.get(offset..offset + 2)?.try_into().ok()?;
        Some(if order == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let (Some(kind), Some(machine)) = (half(16), half(18)) else {
        return not_a_library("a truncated ELF file", "fetch the plugin again");
    };
    let found = machine_name(machine, class, order);
    if machine_of(arch).is_some_and(|needed| needed != (machine, class, order)) {
        return Err(LoadFailure::WrongArchitecture { found, needed: arch.to_owned() });
    }
    match kind {
        // ET_DYN: shared libraries, and programs that may be loaded anywhere, which the linker tells apart. The
        // linker maps a library that lacks its end without complaint, and the first access to what is missing kills
        // the process.
        3 if class == 2 && !is_whole(head, length, order == 2) => {
            not_a_library("a truncated ELF file", "fetch the plugin again")
        }
        3 => Ok(()),
        1 => not_a_library("an object file", "name the plugin's shared library"),
        2 => not_a_library("a program", "name the plugin's shared library"),
        4 => not_a_library("a core dump", "name the plugin's shared library"),
        _ => not_a_library("an ELF file of an unknown kind", "name the plugin's shared library"),
    }
}

/// Whether a 64-bit ELF file of `length` bytes is as long as its headers say.
fn is_whole(head: &[u8], length: u64, big_endian: bool) -> bool {
    let number = |offset: u64, size: usize| -> Option<u64> {
        let start = usize::try_from(offset).ok()?;
        let bytes = head.get(start..start.checked_add(size)?)?;
        let digit = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if big_endian { bytes.iter().fold(0, digit) } else { bytes.iter().rev().fold(0, digit) })
    };
    let whole = || -> Option<bool> {
        let (segments, segment_size, segment_count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
        let (sections, section_size, section_count) = (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?);
        let mut end = sections.checked_add(section_size * section_count)?;
        for index in 0..segment_count {
            let segment = segments.checked_add(index * segment_size)?;
            let (offset, size) = (number(segment.checked_add(8)?, 8)?, number(segment.checked_add(0x20)?, 8)?);
            end = end.max(offset.checked_add(size)?);
        }
        Some(end <= length)
    };
    whole().unwrap_or(false)
}

/// `e_machine`, class (1 for 32 bits, 2 for 64) and byte order (1 for little-endian, 2 for big-endian) of a processor.
fn machine_of(arch: &str) -> Option<(u16, u8, u8)> {
    Some(match arch {
        "x86_64" => (62, 2, 1),
        "aarch64" => (183, 2, 1),
        "x86" => (3, 1, 1),
        "arm" => (40, 1, 1),
        "riscv64" => (243, 2, 1),
        "s390x" => (22, 2, 2),
        "loongarch64" => (258, 2, 1),
        _ => return None,
    })
}

fn machine_name(machine: u16, class: u8, order: u8) -> String {
    let bits = if class == 1 { "32" } else { "64" };
    match machine {
        3 => "x86 (32 bits)".to_owned(),
        21 => format!("powerpc64 ({})", if order == 2 { "big-endian" } else { "little-endian" }),
        22 => "s390x".to_owned(),
        40 => "arm (32 bits)".to_owned(),
        62 if class == 1 => "x86_64 with 32-bit pointers".to_owned(),
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => format!("riscv{bits}"),
        258 => format!("loongarch{bits}"),
        other => format!("an unknown processor (ELF machine {other})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with one segment that ends, like the file, at byte 200.
    fn elf(machine: u16, class: u8, order: u8, kind: u16) -> Vec<u8> {
        let mut head = vec![0; 120];
        head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order]);
        let mut put = |offset: usize, size: usize, value: u64| {
            let field = &mut head[offset..offset + size];
            field.copy_from_slice(&value.to_le_bytes()[..size]);
            if order == 2 {
                field.reverse();
            }
        };
        for (offset, size, value) in [
            (0x10, 2, kind.into()),
            (0x12, 2, machine.into()),
            (0x20, 8, 64), // one program header of 56 bytes at byte 64
            (0x36, 2, 56),
            (0x38, 2, 1),
            (0x28, 8, 136), // one section header of 64 bytes at byte 136
            (0x3a, 2, 64),
            (0x3c, 2, 1),
            (64 + 0x08, 8, 100), // a segment of 100 bytes at byte 100
            (64 + 0x20, 8, 100),
        ] {
            put(offset, size, value);
        }
        head
    }

    #[test]
    fn judges_headers() {
        let truncated = elf(62, 2, 1, 3)[..10].to_vec();
        let with = |offset: usize, value: u8| {
            let mut head = elf(62, 2, 1, 3);
            head[offset] = value;
            head
        };
        for (head, arch, expected) in [
            (elf(62, 2, 1, 3), "x86_64", None),
            (elf(183, 2, 1, 3), "aarch64", None),
            (elf(22, 2, 2, 3), "s390x", None),
            (elf(183, 2, 1, 3), "x86_64", Some("built for aarch64, and this machine is x86_64")),
            (elf(62, 2, 1, 3), "aarch64", Some("built for x86_64, and this machine is aarch64")),
            (elf(21, 2, 2, 3), "x86_64", Some("built for powerpc64 (big-endian)")),
            (elf(62, 1, 1, 3), "x86_64", Some("built for x86_64 with 32-bit pointers")),
            (elf(9999, 2, 1, 3), "x86_64", Some("unknown processor (ELF machine 9999)")),
            (elf(62, 2, 1, 2), "x86_64", Some("a program")),
            (elf(62, 2, 1, 1), "x86_64", Some("an object file")),
            (elf(62, 2, 1, 4), "x86_64", Some("a core dump")),
            (elf(62, 2, 1, 77), "x86_64", Some("an unknown kind")),
            (truncated, "x86_64", Some("truncated ELF")),
            // One byte more of a segment, of the section headers, and more program headers than were read.
            (with(64 + 0x20, 101), "x86_64", Some("truncated ELF")),
            (with(0x28, 137), "x86_64", Some("truncated ELF")),
            (with(0x38, 200), "x86_64", Some("truncated ELF")),
            (with(0x20 + 7, 0xff), "x86_64", Some("truncated ELF")),
            (vec![], "x86_64", Some("an empty file")),
            (b"PK\x03\x04rest".to_vec(), "x86_64", Some("unpack it")),
            (vec![0x1f, 0x8b, 8], "x86_64", Some("gzip")),
            (b"MZ\x90".to_vec(), "x86_64", Some("Windows")),
            (vec![0xcf, 0xfa, 0xed, 0xfe, 7], "x86_64", Some("macOS")),
            (b"HloModule jit_step".to_vec(), "x86_64", Some("without an ELF header")),
            // A processor that this table does not know is left to the linker.
            (elf(62, 2, 1, 3), "sparc64", None),
        ] {
            let found = check_elf(&head, 200, arch).err().map(|failure| failure.to_string());
            match expected {
                None => assert_eq!(found, None, "{arch}"),
                Some(part) => {
                    assert!(found.as_deref().is_some_and(|text| text.contains(part)), "{found:?} lacks {part:?}")
                }
            }
        }
    }
}
