//! Child processes, however they end. Needs the CPU plugin; `make plugin` fetches it.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use entropic::input::Convert;
use entropic::isolate::{IsolateError, Job, Task, Worker};

const PROGRAM: &str = env!("CARGO_BIN_EXE_entropic");

const STEP: &str = "module @jit_step { func.func public @main(%w: tensor<4xf32>) -> tensor<4xf32> { \
                    %0 = stablehlo.add %w, %w : tensor<4xf32> return %0 : tensor<4xf32> } }";

fn convert() -> Convert {
    Convert { plugin: entropic::plugin::find("cpu").expect("run `make plugin`") }
}

fn job(worker: &Worker, program: &str) -> Job {
    let job = worker.job().unwrap();
    job.write(Convert::PROGRAM, program.as_bytes()).unwrap();
    job
}

/// A job whose child is this shell script: `sh worker FOLDER`, in the folder.
fn script(worker: Worker, text: &str) -> Result<<Convert as Task>::Reply, IsolateError> {
    let job = worker.job().unwrap();
    job.write("worker", text.as_bytes()).unwrap();
    job.run(&Convert { plugin: "/none".into() })
}

fn shell() -> Worker {
    Worker::new("/bin/sh")
}

fn check(error: &IsolateError, parts: &[&str]) {
    for part in parts {
        assert!(error.to_string().contains(part), "{error} lacks {part:?}");
    }
}

#[test]
fn a_task_is_done_in_a_child() {
    let job = job(&Worker::new(PROGRAM), STEP);
    job.run(&convert()).unwrap();
    let module = hlo::Module::import(&job.read(Convert::MODULE).unwrap()).unwrap();
    assert_eq!(module.name(), "jit_step");
    assert_eq!(module.entry_computation().parameters().len(), 1);
}

#[test]
fn the_folder_is_private_and_goes_with_the_job() {
    use std::os::unix::fs::PermissionsExt;
    let job = shell().job().unwrap();
    let folder = job.folder().to_owned();
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    drop(job);
    assert!(!folder.exists());
}

#[test]
fn a_task_that_fails_says_why() {
    let error = job(&Worker::new(PROGRAM), "module @jit_step { func.func }").run(&convert()).unwrap_err();
    assert!(matches!(error, IsolateError::Failed { .. }), "{error}");
    check(&error, &["expected valid '@'-identifier", "PJRT_Client_Compile"]);
    let error = job(&Worker::new(PROGRAM), STEP).run(&Convert { plugin: "/none.so".into() }).unwrap_err();
    check(&error, &["/none.so"]);
}

#[test]
fn a_child_that_dies_is_an_error_with_its_last_words() {
    let fatal = "echo before; echo 'F0000 00:00:1.5 7 shape.cc:80] Check failed: rank == 2 ' >&2; \
                 echo '*** Check failure stack trace: ***' >&2; kill -ABRT $$";
    let error = script(shell(), fatal).unwrap_err();
    assert!(matches!(error, IsolateError::Died { .. }), "{error}");
    check(&error, &["SIGABRT (it aborted)", "shape.cc:80] Check failed: rank == 2"]);
    assert!(!error.to_string().contains("stack trace"), "{error}");
    check(&script(shell(), "kill -SEGV $$").unwrap_err(), &["SIGSEGV (an invalid memory access)"]);
    check(&script(shell(), "kill -KILL $$").unwrap_err(), &["SIGKILL", "memory"]);
}

#[test]
fn a_child_without_a_reply_is_an_error() {
    let error = script(shell(), "echo so long; exit 3").unwrap_err();
    assert!(matches!(error, IsolateError::Exited { code: 3, .. }), "{error}");
    check(&error, &["code 3", "so long"]);
    check(&script(shell(), "").unwrap_err(), &["code 0 and gave no reply"]);
    check(&script(shell(), "echo '{\"done\": ' > reply.json").unwrap_err(), &["/bin/sh is not understood", "EOF"]);
    check(&script(shell(), "echo '{\"sum\": 7}' > reply.json").unwrap_err(), &["not understood", "sum"]);
}

#[test]
fn a_reply_counts_whatever_comes_after_it() {
    script(shell(), "echo '{\"done\": null}' > reply.json; kill -ABRT $$").unwrap();
}

#[test]
fn a_child_that_takes_too_long_is_ended() {
    let start = Instant::now();
    let error = script(shell().limit(Duration::from_millis(200)), "echo loading; exec sleep 600").unwrap_err();
    assert!(matches!(error, IsolateError::TimedOut { .. }), "{error}");
    check(&error, &["0.2 s", "loading"]);
    assert!(start.elapsed() < Duration::from_secs(60));
    script(shell().limit(Duration::from_secs(600)), "echo '{\"done\": null}' > reply.json").unwrap();
}

#[test]
fn a_child_has_the_variables_it_was_given() {
    let worker = shell().environment("ACCELERATOR", "v5e");
    let error = script(worker, "echo we have $ACCELERATOR; exit 1").unwrap_err();
    check(&error, &["we have v5e"]);
}

#[test]
fn signals_to_our_group_are_not_the_childs() {
    // The other way round this would end the test.
    let error = script(shell(), "kill -INT 0; sleep 60").unwrap_err();
    check(&error, &["SIGINT"]);
}

#[test]
fn a_program_that_does_not_start() {
    let error = Worker::new("/none/entropic").job().unwrap().run(&convert()).unwrap_err();
    assert!(matches!(error, IsolateError::Start { .. }), "{error}");
    check(&error, &["/none/entropic", "No such file"]);
}

#[test]
fn a_child_ends_with_its_parent() {
    let job = Worker::new(PROGRAM).job().unwrap();
    let request = entropic::isolate::Request::from(convert());
    job.write("request.json", &serde_json::to_vec(&request).unwrap()).unwrap();
    // Reading this takes for ever.
    let made = Command::new("mkfifo").arg(job.folder().join(Convert::PROGRAM)).status().unwrap();
    assert!(made.success());
    let mut child = Command::new(PROGRAM)
        .arg("worker")
        .arg(job.folder())
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
    // What happens to it when a parent is gone, by whatever cause.
    drop(child.stdin.take());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "the child goes on without its parent");
        thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.signal(), Some(9));
}

#[test]
fn the_subcommand_alone_says_that_it_is_not_for_people() {
    let output = Command::new(PROGRAM).args(["worker", "/none"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("for the program's own use"));
    let help = Command::new(PROGRAM).arg("--help").output().unwrap();
    assert!(!String::from_utf8(help.stdout).unwrap().contains("worker"));
}
