//! Whether a plugin in the user's cache may be loaded: it is code, and runs in this process.
//!
//! The folders that it lies in must be this user's alone to write to, and every file must have the pinned SHA-256. A library has
//! hundreds of megabytes, so the sums are made once: a note beside the files says which ones they were made of (size, times, number
//! of the file), and whoever could forge it could as well change the program. A library at a path that was given, in the folder
//! `ENTROPIC_PLUGIN_DIR` or in the Python environment is the user's own choice.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{Found, Known, Origin, differing};
use crate::files;

/// What says of which files the sums were made.
const NOTE: &str = "verified";
/// Folders of this program above a plugin: its release, `plugins`, `entropic`.
const FOLDERS: usize = 3;

/// Why a plugin of the user's cache is not loaded.
#[derive(Debug, Error)]
pub enum TrustError {
    /// Somebody else could have put it there.
    #[error(
        "the folder {} {what}, and a plugin in it would be run as code; {advice} and fetch the plugin again, or give the path of a \
         library that you trust with --plugin", path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// It is not what was fetched.
    #[error(
        "in {} these files are not the pinned ones: {}. `entropic plugin fetch {name}` replaces them; to use them all the same, give \
         the path of the library with --plugin", folder.display(), files.join(", ")
    )]
    Differs {
        /// The plugin's folder.
        folder: PathBuf,
        /// Name of the plugin.
        name: &'static str,
        /// The files, relative to the folder.
        files: Vec<&'static str>,
    },
    /// It cannot be looked at.
    #[error("cannot look at {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Refuses a plugin of the user's cache that another user could have put there, or that is not the pinned one.
///
/// # Errors
///
/// See [`TrustError`].
pub fn check(known: &Known, found: &Found) -> Result<(), TrustError> {
    if found.origin != Origin::Cache {
        return Ok(());
    }
    let folder = files::parent(&found.path);
    check_folders(folder)?;
    let note = folder.join(NOTE);
    let failed = |source| TrustError::Io { path: found.path.clone(), source };
    let identity = identity(known, folder).map_err(failed)?;
    if fs::read(&note).is_ok_and(|noted| noted == identity.as_bytes()) {
        return Ok(());
    }
    let files = differing(known, found);
    if !files.is_empty() {
        return Err(TrustError::Differs { folder: folder.to_owned(), name: known.name, files });
    }
    // Without the note they are compared again the next time.
    if let Err(error) = files::write(&note, identity.as_bytes()) {
        tracing::debug!("the sums of {} will be made again: {error}", folder.display());
    }
    Ok(())
}

/// Refuses folders of this program that others may write to.
pub(super) fn check_folders(folder: &Path) -> Result<(), TrustError> {
    for folder in folder.ancestors().take(FOLDERS) {
        let failed = |source| TrustError::Io { path: folder.to_owned(), source };
        if let Some((what, advice)) = files::who_may_write(folder).map_err(failed)?.complaint() {
            return Err(TrustError::Folder { path: folder.to_owned(), what, advice });
        }
    }
    Ok(())
}

/// What tells these files from any that came into their places, and the sums that they are to have.
fn identity(known: &Known, folder: &Path) -> io::Result<String> {
    let mut text = String::new();
    for (member, sum) in known.files() {
        text += &format!("{sum} {} {}\n", files::identity(&folder.join(member.target))?, member.target);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A plugin that lies where a fetch puts it, with content that is not what was pinned.
    fn plugin(at: &Path) -> (&'static Known, Found) {
        let known = Known::by_name("cpu").unwrap();
        let folder = at.join("entropic/plugins/release");
        files::private_folder(&folder).unwrap();
        let path = folder.join(known.library);
        fs::write(&path, "no library").unwrap();
        (known, Found { path, origin: Origin::Cache })
    }

    #[test]
    fn files_that_were_not_fetched_are_refused_and_named() {
        let at = tempfile::tempdir().unwrap();
        let (known, found) = plugin(at.path());
        let error = check(known, &found).unwrap_err().to_string();
        assert!(error.contains("xla_cpu_pjrt.so") && error.contains("entropic plugin fetch cpu"), "{error}");
        // Nothing says that they were once found to be right.
        assert!(!found.path.with_file_name(NOTE).exists());
        for origin in [Origin::Given, Origin::PluginDir, Origin::Python] {
            check(known, &Found { origin, ..found.clone() }).unwrap();
        }
    }

    #[test]
    fn a_note_holds_for_the_files_that_it_was_made_of() {
        let at = tempfile::tempdir().unwrap();
        let (known, found) = plugin(at.path());
        let folder = files::parent(&found.path);
        fs::write(folder.join(NOTE), identity(known, folder).unwrap()).unwrap();
        check(known, &found).unwrap();
        fs::write(&found.path, "no librarY").unwrap();
        assert!(matches!(check(known, &found), Err(TrustError::Differs { .. })));
    }

    #[test]
    fn folders_that_others_may_write_to_are_refused() {
        let at = tempfile::tempdir().unwrap();
        let (known, found) = plugin(at.path());
        for above in ["entropic/plugins/release", "entropic/plugins", "entropic"] {
            let folder = at.path().join(above);
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o720)).unwrap();
            let error = check(known, &found).unwrap_err().to_string();
            assert!(error.contains(above) && error.contains("chmod go-w"), "{error}");
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        }
    }
}
