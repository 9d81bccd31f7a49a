//! A look at a file before the dynamic linker sees it, for errors that say more than the linker's.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::LoadFailure;

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
    let mut head = Vec::with_capacity(64);
    File::open(&file).and_then(|file| file.take(64).read_to_end(&mut head)).map_err(unreadable)?;
    if cfg!(target_os = "linux") {
        check_elf(&head, std::env::consts::ARCH)?;
    }
    Ok(file)
}

/// Judges the first bytes of a file on a machine whose processor Rust calls `arch`.
fn check_elf(head: &[u8], arch: &str) -> Result<(), LoadFailure> {
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
        // ET_DYN: shared libraries, and programs that may be loaded anywhere, which the linker tells apart.
        3 => Ok(()),
        1 => not_a_library("an object file", "name the plugin's shared library"),
        2 => not_a_library("a program", "name the plugin's shared library"),
        4 => not_a_library("a core dump", "name the plugin's shared library"),
        _ => not_a_library("an ELF file of an unknown kind", "name the plugin's shared library"),
    }
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

    fn elf(machine: u16, class: u8, order: u8, kind: u16) -> Vec<u8> {
        let mut head = vec![0x7f, b'E', b'L', b'F', class, order];
        head.resize(16, 0);
        for half in [kind, machine] {
            head.extend(if order == 2 { half.to_be_bytes() } else { half.to_le_bytes() });
        }
        head
    }

    #[test]
    fn judges_headers() {
        let truncated = elf(62, 2, 1, 3)[..10].to_vec();
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
            (vec![], "x86_64", Some("an empty file")),
            (b"PK\x03\x04rest".to_vec(), "x86_64", Some("unpack it")),
            (vec![0x1f, 0x8b, 8], "x86_64", Some("gzip")),
            (b"MZ\x90".to_vec(), "x86_64", Some("Windows")),
            (vec![0xcf, 0xfa, 0xed, 0xfe, 7], "x86_64", Some("macOS")),
            (b"HloModule jit_step".to_vec(), "x86_64", Some("without an ELF header")),
            // A processor that this table does not know is left to the linker.
            (elf(62, 2, 1, 3), "sparc64", None),
        ] {
            let found = check_elf(&head, arch).err().map(|failure| failure.to_string());
            match expected {
                None => assert_eq!(found, None, "{arch}"),
                Some(part) => {
                    assert!(found.as_deref().is_some_and(|text| text.contains(part)), "{found:?} lacks {part:?}")
                }
            }
        }
    }
}
