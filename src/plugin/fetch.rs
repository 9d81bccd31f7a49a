//! Fetching a known plugin through `pip download`.
//!
//! pip is the client of the package index, so that its mirrors, proxies and
//! certificates apply. Package and library are compared with pinned SHA-256 sums, the
//! library appears under its final name only when it is complete, and two fetches
//! at the same time do no harm.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{FindError, Known};
use crate::files;

/// What [`fetch`] did.
#[derive(Debug)]
pub enum Fetched {
    /// The library was there already, with the pinned sum.
    Present(PathBuf),
    /// The library is there now.
    New(PathBuf),
}

/// Why a plugin was not fetched. Nothing is left behind.
#[derive(Debug, Error)]
pub enum FetchError {
    /// No place for it.
    #[error(transparent)]
    Find(#[from] FindError),
    /// No package for this machine.
    #[error(
        "{package} {version} has no build for {os} on {arch}; install a PJRT plugin for this machine by other means and \
         give its path with --plugin"
    )]
    NoBuild {
        /// The package.
        package: &'static str,
        /// Its version.
        version: &'static str,
        /// This operating system.
        os: &'static str,
        /// This processor.
        arch: &'static str,
    },
    /// No Python with pip.
    #[error(
        "pip is needed to download {package}, and {tried}; install python3 with pip (Debian: `apt install python3-pip`)"
    )]
    NoPip {
        /// The package.
        package: &'static str,
        /// What was tried.
        tried: String,
    },
    /// pip failed.
    #[error("`{command}` failed: {message}")]
    Pip {
        /// The command.
        command: String,
        /// The last lines of what it said.
        message: String,
    },
    /// Something else than what was pinned came.
    #[error(
        "{what} has the SHA-256 {found}, but {expected} is pinned; the download is damaged or the index serves another \
         file. Nothing was installed; try again, or check the index that pip is configured with"
    )]
    Sum {
        /// The file.
        what: String,
        /// Its sum.
        found: String,
        /// The pinned sum.
        expected: &'static str,
    },
    /// The package does not hold what it should.
    #[error("{package} cannot be unpacked: {message}")]
    Package {
        /// The package.
        package: String,
        /// What is wrong.
        message: String,
    },
    /// The file system refused.
    #[error("cannot write {}: {source}; choose another place with ENTROPIC_PLUGIN_DIR", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Downloads a known plugin to its [location](Known::location), unless it is there already.
///
/// # Errors
///
/// See [`FetchError`].
pub fn fetch(known: &'static Known) -> Result<Fetched, FetchError> {
    let target = known.location()?;
    let build = known.build().ok_or(FetchError::NoBuild {
        package: known.package,
        version: known.version,
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
    })?;
    if target.is_file() && file_sum(&target).is_ok_and(|sum| sum == build.library_sha256) {
        return Ok(Fetched::Present(target));
    }
    let folder = files::parent(&target);
    private_folder(folder).map_err(|source| FetchError::Io { path: folder.to_owned(), source })?;
    let failed = |source| FetchError::Io { path: folder.to_owned(), source };
    let scratch = tempfile::Builder::new().prefix(".fetch-").tempdir_in(folder).map_err(failed)?;
    let package = download(known, scratch.path())?;
    let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let found = file_sum(&package).map_err(failed)?;
    if found != build.package_sha256 {
        return Err(FetchError::Sum { what: name, found, expected: build.package_sha256 });
    }
    let mut library = tempfile::NamedTempFile::new_in(scratch.path()).map_err(failed)?;
    let found = extract(&package, known.member, &mut library)
        .map_err(|message| FetchError::Package { package: name.clone(), message })?;
    if found != build.library_sha256 {
        return Err(FetchError::Sum {
            what: format!("{} in {name}", known.member),
            found,
            expected: build.library_sha256,
        });
    }
    library.as_file().sync_all().map_err(failed)?;
    library.persist(&target).map_err(|e| failed(e.error))?;
    Ok(Fetched::New(target))
}

/// Has pip put the package into `folder`; returns the file.
fn download(known: &Known, folder: &Path) -> Result<PathBuf, FetchError> {
    let python = find_pip(known.package)?;
    let requirement = format!("{}=={}", known.package, known.version);
    let arguments = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest"];
    let shown = format!("{python} -m pip download --no-deps --only-binary=:all: {requirement}");
    let pip = |message| FetchError::Pip { command: shown.clone(), message };
    let output =
        Command::new(&python).args(arguments).arg(folder).arg(&requirement).output().map_err(|e| pip(e.to_string()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let last = lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join(" ");
        return Err(pip(if last.is_empty() { output.status.to_string() } else { last }));
    }
    let entries = fs::read_dir(folder).map_err(|e| pip(e.to_string()))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| pip("it left no wheel behind".to_owned()))
}

/// A Python interpreter that has pip.
fn find_pip(package: &'static str) -> Result<String, FetchError> {
    let mut tried = Vec::new();
    for python in ["python3", "python"] {
        match Command::new(python).args(["-m", "pip", "--version"]).output() {
            Ok(output) if output.status.success() => return Ok(python.to_owned()),
            Ok(_) => tried.push(format!("`{python}` has no pip")),
            Err(_) => tried.push(format!("there is no `{python}`")),
        }
    }
    Err(FetchError::NoPip { package, tried: tried.join(" and ") })
}

/// Copies one member of a zip archive to `target`; returns its SHA-256.
///
/// Only that member is read, and it is written where this program says: names inside the archive cannot lead elsewhere.
fn extract(archive: &Path, member: &str, target: &mut impl Write) -> Result<String, String> {
    let file = File::open(archive).map_err(|e| e.to_string())?;
    let mut zip = zip::ZipArchive::new(file).map_err(|e| format!("it is no zip archive ({e})"))?;
    let mut entry = zip.by_name(member).map_err(|e| format!("{member}: {e}"))?;
    copy_and_sum(&mut entry, target).map_err(|e| format!("{member}: {e}"))
}

fn file_sum(path: &Path) -> io::Result<String> {
    copy_and_sum(&mut File::open(path)?, &mut io::sink())
}

fn copy_and_sum(source: &mut impl Read, target: &mut impl Write) -> io::Result<String> {
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = source.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..read).filter(|c| !c.is_empty()) else { break };
        sum.update(chunk);
        target.write_all(chunk)?;
    }
    Ok(files::hex(&sum.finalize()))
}

/// Creates a folder that only this user may write to, for code that will be loaded lies in it.
fn private_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
        let path = folder.join("a.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
        zip.finish().unwrap();
        path
    }

    #[test]
    fn extracts_the_member_and_sums_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = archive(folder.path(), "a/b.so", b"abc");
        let mut bytes = Vec::new();
        let sum = extract(&path, "a/b.so", &mut bytes).unwrap();
        assert_eq!(bytes, b"abc");
        assert_eq!(sum, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn refuses_packages_without_the_member() {
        let folder = tempfile::tempdir().unwrap();
        let path = archive(folder.path(), "../../b.so", b"abc");
        assert!(extract(&path, "a/b.so", &mut io::sink()).unwrap_err().contains("a/b.so"));
        fs::write(&path, "no zip").unwrap();
        assert!(extract(&path, "a/b.so", &mut io::sink()).unwrap_err().contains("no zip archive"));
    }
}
