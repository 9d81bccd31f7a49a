//! Fetching a known plugin through `pip download`.
//!
//! pip is the client of the package index, so that its mirrors, proxies and
//! certificates apply. Packages and what is unpacked from them are compared with pinned SHA-256 sums, files
//! appear under their final names only when all of them are complete, the library last, and two
//! fetches at the same time do no harm.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use thiserror::Error;

use super::{Build, FindError, Found, Known, Member, Origin, Package, PythonTags, trust};
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

/// Downloads a known plugin to its [place](Known::place), unless all of it is there already.
///
/// # Errors
///
/// See [`FetchError`].
pub fn fetch(known: &'static Known) -> Result<Fetched, FetchError> {
    let place = known.place()?;
    for package in known.packages() {
        package.build().ok_or(FetchError::NoBuild {
            package: package.name,
            version: package.version,
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
        })?;
    }
    if differing(known, &place).is_empty() {
        return Ok(Fetched::Present(place.path));
    }
    let folder = files::parent(&place.path);
    files::private_folder(folder).map_err(|source| FetchError::Io { path: folder.to_owned(), source })?;
    if place.origin == Origin::Cache {
        trust::check_folders(folder).map_err(FindError::from)?;
    }
    let failed = |source| FetchError::Io { path: folder.to_owned(), source };
    let scratch = tempfile::Builder::new().prefix(".fetch-").tempdir_in(folder).map_err(failed)?;
    // The library is what a search for the plugin looks at, so it comes last: the tools are there by then.
    let mut unpacked = Vec::new();
    for package in known.packages() {
        unpacked.extend(unpack(package, scratch.path())?);
    }
    for (file, target) in unpacked.into_iter().rev() {
        let target = folder.join(target);
        files::private_folder(files::parent(&target)).map_err(failed)?;
        file.persist(&target).map_err(|e| failed(e.error))?;
    }
    Ok(Fetched::New(place.path))
}

/// The files of a known plugin that are missing, or are not the pinned ones for this machine. Where this program puts
/// plugins, the tools beside the library count as well; elsewhere they are somebody else's.
#[must_use]
pub fn differing(known: &Known, found: &Found) -> Vec<&'static str> {
    let folder = files::parent(&found.path);
    let count = match found.origin {
        Origin::PluginDir | Origin::Cache => usize::MAX,
        Origin::Given | Origin::Python => 1,
    };
    let differs =
        |(member, sum): &(&Member, &str)| !file_sum(&folder.join(member.target)).is_ok_and(|found| found == *sum);
    known.files().take(count).filter(differs).map(|(member, _)| member.target).collect()
}

/// Downloads a package into a folder and unpacks its members there, compared with their sums and synced to disk.
fn unpack(package: &'static Package, scratch: &Path) -> Result<Vec<(NamedTempFile, &'static str)>, FetchError> {
    let failed = |source| FetchError::Io { path: scratch.to_owned(), source };
    let Some(build) = package.build() else { return Ok(Vec::new()) };
    let folder = tempfile::tempdir_in(scratch).map_err(failed)?;
    let wheel = download(package, build, folder.path())?;
    let name = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let found = file_sum(&wheel).map_err(failed)?;
    if found != build.sha256 {
        return Err(FetchError::Sum { what: name, found, expected: build.sha256 });
    }
    let mut unpacked = Vec::new();
    for (member, expected) in package.files() {
        let mut file = NamedTempFile::new_in(scratch).map_err(failed)?;
        let found = extract(&wheel, member.source, &mut file)
            .map_err(|message| FetchError::Package { package: name.clone(), message })?;
        if found != expected {
            return Err(FetchError::Sum { what: format!("{} in {name}", member.source), found, expected });
        }
        #[cfg(unix)]
        if member.executable {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            file.as_file().set_permissions(permissions).map_err(failed)?;
        }
        file.as_file().sync_all().map_err(failed)?;
        unpacked.push((file, member.target));
    }
    Ok(unpacked)
}

/// Has pip put the package into `folder`; returns the file.
///
/// pip is told which wheel, and not left to choose one for the Python that it runs in.
fn download(package: &Package, build: &Build, folder: &Path) -> Result<PathBuf, FetchError> {
    let python = find_pip(package.name)?;
    let requirement = format!("{}=={}", package.name, package.version);
    let PythonTags { implementation, abi } = package.python;
    let arguments = [
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        "3.11",
        "--implementation",
        implementation,
        "--abi",
        abi,
        "--platform",
        build.platform,
    ];
    let shown = format!("{python} {} {requirement}", arguments.join(" "));
    let pip = |message| FetchError::Pip { command: shown.clone(), message };
    let mut command = Command::new(&python);
    command.args(arguments).args(["--quiet", "--disable-pip-version-check", "--dest"]).arg(folder).arg(&requirement);
    let output = command.output().map_err(|e| pip(e.to_string()))?;
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
