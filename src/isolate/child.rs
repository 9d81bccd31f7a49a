//! The child's side: read the request, do it, write the reply.

use std::convert::Infallible;
use std::error::Error;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::thread;

use serde::Serialize;
use thiserror::Error;

use super::{Answer, REPLY, REQUEST, Request, Task};
use crate::files;

/// Why a child cannot serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// No request, or no place for the reply.
    #[error("this command is for the program's own use: there is no job in its folder: {0}")]
    Folder(#[from] io::Error),
    /// A request that is none.
    #[error("the request is not understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// Does what the request in `folder` asks for, writes the reply there, and ends the process.
///
/// The process ends at once, too, when its standard input is closed, as it is when the parent is gone.
///
/// # Errors
///
/// Where there is no request or no reply can be written; a task that fails is a reply.
pub fn serve(folder: &Path) -> Result<Infallible, ServeError> {
    let request = fs::read(folder.join(REQUEST))?;
    thread::spawn(|| {
        let mut nothing = [0];
        while matches!(io::stdin().read(&mut nothing), Ok(1)) {}
        end()
    });
    match serde_json::from_slice(&request)? {
        Request::Convert(task) => reply(&task, folder)?,
        Request::Build(task) => reply(&task, folder)?,
        Request::Compile(task) => reply(&task, folder)?,
    }
    end()
}

fn reply<T: Task>(task: &T, folder: &Path) -> Result<(), ServeError> {
    let answer = match task.run(folder) {
        Ok(reply) => Answer::Done(reply),
        Err(error) => Answer::Failed(paragraph(error.as_ref())),
    };
    write(&answer, folder)
}

/// The reply appears whole or not at all: the plugin may end the process at any time.
fn write(answer: &Answer<impl Serialize>, folder: &Path) -> Result<(), ServeError> {
    files::write(&folder.join(REPLY), &serde_json::to_vec(answer)?).map_err(io::Error::other)?;
    Ok(())
}

/// Ends the process without running destructors: a plugin's may wait for a compilation that nobody needs any more.
fn end() -> ! {
    #[cfg(unix)]
    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    std::process::abort()
}

/// A chain of causes as one paragraph; a cause whose words its parent has said already is left out.
#[must_use]
pub fn paragraph(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        next = cause.source();
        let words = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if text.contains(&words) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&words);
    }
    text
}
