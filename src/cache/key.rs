//! What a compiled program depends on, as one SHA-256.
//!
//! Two programs of equal keys are interchangeable: same module, same options, same compiler, same kind of device. What a
//! compiler takes from elsewhere counts as well: its flags in the environment, and for a CPU the
//! processor's features, since the code is made for them.

use std::fs;
use std::path::Path;

use pjrt::{Client, Device};
use sha2::{Digest, Sha256};

use crate::files;

/// Changes when entries written before must not be read any more.
const FORMAT: &str = "entropic executable 1";

/// Variables that compilers read flags from. The first may name a file of flags.
const FLAGS: &[&str] = &["XLA_FLAGS", "LIBTPU_INIT_ARGS"];

/// Lines of `/proc/cpuinfo` by which a compiler chooses instructions.
const CPU_LINES: &[&str] = &[
    "vendor_id",
    "cpu family",
    "model",
    "flags",
    "CPU implementer",
    "CPU architecture",
    "CPU variant",
    "CPU part",
    "Features",
];

/// The name of a compiled program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key in hexadecimal.
    #[must_use]
    pub fn hex(&self) -> String {
        files::hex(&self.0)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// All that the programs of one device have in common.
#[derive(Debug, Clone)]
pub struct Target(Sha256);

impl Target {
    /// For programs of this client that run on this device.
    ///
    /// A plugin is known by its path, size and time of change, and by what it says of itself: it has hundreds of
    /// megabytes, which are not to be read at every start.
    #[must_use]
    pub fn new(client: &Client, device: &Device) -> Self {
        let plugin = client.plugin();
        let mut target = Self(Sha256::new());
        target.field("format", FORMAT);
        target.field("plugin", &file_identity(plugin.path()));
        target.field("attributes", &format!("{:?}", plugin.attributes()));
        target.field("api", &plugin.api_version().to_string());
        target.field("platform", client.platform_name());
        target.field("platform version", client.platform_version());
        target.field("device", device.kind());
        // A CPU's compiler also cuts work into as many parts as there are threads.
        target.field("threads", &format!("{:?}", std::thread::available_parallelism().ok()));
        target.field("cpu", &cpu_features(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()));
        for name in FLAGS {
            let value = std::env::var_os(name).unwrap_or_default();
            target.field(name, &value.to_string_lossy());
            target.field("file", &fs::read_to_string(&value).unwrap_or_default());
        }
        target
    }

    /// No target at all, for keys that only need to differ.
    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        Self(Sha256::new())
    }

    /// The key of a program.
    #[must_use]
    pub fn key(&self, module: &[u8], options: &[u8]) -> Key {
        let mut program = self.clone();
        program.bytes("module", module);
        program.bytes("options", options);
        Key(program.0.finalize().into())
    }

    fn field(&mut self, name: &str, value: &str) {
        self.bytes(name, value.as_bytes());
    }

    /// Lengths go in as well, so that no two lists of fields give the same bytes.
    fn bytes(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }
}

fn file_identity(path: &Path) -> String {
    let info = fs::metadata(path).map(|info| (info.len(), info.modified().ok()));
    format!("{} {info:?}", path.display())
}

/// The lines of the first processor that tell what instructions it has.
fn cpu_features(cpuinfo: &str) -> String {
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let tells = |line: &&str| line.split_once(':').is_some_and(|(name, _)| CPU_LINES.contains(&name.trim()));
    first.lines().filter(tells).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts_and_so_does_its_place() {
        let target = Target(Sha256::new());
        let keys = [(&b"ab"[..], &b"c"[..]), (b"a", b"bc"), (b"abc", b""), (b"", b"abc"), (b"ab", b"d")];
        for (i, (module, options)) in keys.iter().enumerate() {
            for (other_module, other_options) in &keys[i + 1..] {
                assert_ne!(target.key(module, options), target.key(other_module, other_options));
            }
            assert_eq!(target.key(module, options), target.key(module, options));
        }
        let mut other = target.clone();
        other.field("platform", "cpu");
        assert_ne!(target.key(b"a", b"b"), other.key(b"a", b"b"));
    }

    #[test]
    fn what_changes_from_second_to_second_is_no_feature() {
        let cpuinfo = |mhz: &str, flags: &str| {
            format!(
                "processor\t: 0\nvendor_id\t: X\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: X 1\ncpu MHz\t\t: {mhz}\n\
                 flags\t\t: {flags}\nbogomips\t: 1\n\nprocessor\t: 1\nflags\t\t: other\n"
            )
        };
        let features = cpu_features(&cpuinfo("1", "fpu avx2"));
        assert_eq!(features, "vendor_id\t: X\ncpu family\t: 6\nmodel\t\t: 85\nflags\t\t: fpu avx2");
        assert_eq!(cpu_features(&cpuinfo("2", "fpu avx2")), features);
        assert_ne!(cpu_features(&cpuinfo("1", "fpu avx512f")), features);
        let arm = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve\nCPU part\t: 0xd40\n";
        assert_eq!(cpu_features(arm), "Features\t: fp asimd sve\nCPU part\t: 0xd40");
    }

    #[test]
    fn a_file_that_was_written_again_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugin.so");
        fs::write(&path, "one").unwrap();
        let first = file_identity(&path);
        assert_eq!(file_identity(&path), first);
        fs::write(&path, "three").unwrap();
        assert_ne!(file_identity(&path), first);
    }
}
