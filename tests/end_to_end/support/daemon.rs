//! A driftless process: started, listened to, harmed, waited for.
//!
//! Everything that it says is searched for the password of the private server when it ends, so
//! that every scenario is also a test that no secret is told (S105).

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use driftless::demo::server::{PASSWORD, signal};

use super::PATIENCE;

/// A running driftless; killed when dropped.
pub struct Daemon {
    process: Child,
    arguments: String,
    said: Arc<Mutex<Vec<String>>>,
    listeners: Vec<JoinHandle<()>>,
    answer: Arc<Mutex<String>>,
    memory_peak_kib: u64,
}

/// How a driftless ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// What was run, for messages.
    pub arguments: String,
    /// The largest memory seen, in KiB.
    pub memory_peak_kib: u64,
}

impl Daemon {
    /// Starts the binary under test.
    pub fn start(arguments: &[String]) -> Daemon {
        Daemon::start_with(arguments, &[])
    }

    /// Starts it with these variables in its environment.
    pub fn start_with(arguments: &[String], environment: &[(String, String)]) -> Daemon {
        Daemon::spawn(Command::new(env!("CARGO_BIN_EXE_driftless")), arguments, environment)
    }

    /// Starts it so that `limit_files` makes a write fail instead of ending the process.
    pub fn start_limited(arguments: &[String], environment: &[(String, String)]) -> Daemon {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_driftless")]);
        Daemon::spawn(shell, arguments, environment)
    }

    fn spawn(
        mut command: Command,
        arguments: &[String],
        environment: &[(String, String)],
    ) -> Daemon {
        command.args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // What a developer has exported must not change what is tested.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DRIFTLESS_")) {
            command.env_remove(name);
        }
        command.envs(environment.iter().cloned());
        let mut process = command.spawn().unwrap();
        let (stdout, stderr) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        let said = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(Mutex::new(String::new()));
        let listeners = vec![listen(stderr, said.clone()), collect(stdout, answer.clone())];
        let arguments = arguments.join(" ").replace(PASSWORD, "***");
        Daemon { process, arguments, said, listeners, answer, memory_peak_kib: 0 }
    }

    /// No file that it writes may become larger; `None` for no limit. It must have been started by
    /// `start_limited`.
    pub fn limit_files(&self, bytes: Option<u64>) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let limit = rustix::process::Rlimit { current: bytes, maximum: None };
        rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, limit).unwrap();
    }

    /// Whether a line on standard error contains this text.
    pub fn has_said(&self, text: &str) -> bool {
        self.said.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// What it said on standard error so far.
    pub fn stderr(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    /// Sends a signal, by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        signal(name, &[self.process.id()]).unwrap();
    }

    /// SIGKILL.
    pub async fn kill(mut self) -> Outcome {
        if self.is_running() {
            self.signal("KILL");
        }
        self.wait().await
    }

    /// SIGTERM, then waits for the end.
    pub async fn terminate(self) -> Outcome {
        self.signal("TERM");
        self.wait().await
    }

    /// Whether it has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.sample_memory();
        self.process.try_wait().unwrap().is_none()
    }

    /// Fails the test, with what it said, if it has ended by itself.
    pub fn must_be_running(&mut self) {
        assert!(self.is_running(), "`{}` ended:\n{}", self.arguments, self.stderr());
    }

    /// Waits for the end.
    pub async fn wait(mut self) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        let code = loop {
            self.sample_memory();
            match self.process.try_wait().unwrap() {
                Some(status) => break status.code(),
                None => assert!(
                    Instant::now() < deadline,
                    "`{}` does not end; it said\n{}",
                    self.arguments,
                    self.stderr()
                ),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        for listener in self.listeners.drain(..) {
            listener.join().unwrap();
        }
        let (stdout, stderr) = (self.answer.lock().unwrap().clone(), self.stderr());
        for output in [&stdout, &stderr] {
            assert!(!output.contains(PASSWORD), "`{}` told the password", self.arguments);
        }
        let (arguments, memory_peak_kib) = (self.arguments.clone(), self.memory_peak_kib);
        Outcome { code, stdout, stderr, arguments, memory_peak_kib }
    }

    fn sample_memory(&mut self) {
        let status = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(status).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        self.memory_peak_kib = self.memory_peak_kib.max(peak.unwrap_or(0));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A stopped process cannot be waited for before it has been killed; SIGKILL needs no CONT.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("`{}` said:\n{}", self.arguments, self.stderr());
        }
    }
}

impl Outcome {
    /// Fails the test, with all that was said, unless the exit code is this one.
    #[track_caller]
    pub fn must_exit(self, code: i32) -> Outcome {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Fails the test unless it stopped with this stable code, on standard error, and a remedy.
    #[track_caller]
    pub fn must_stop_with(self, code: &str) -> Outcome {
        assert_ne!(self.code, Some(0), "expected [{code}]: {self}");
        assert!(self.stderr.contains(&format!("[{code}]")), "expected [{code}]: {self}");
        self
    }

    /// Fails the test unless standard error contains this text.
    #[track_caller]
    pub fn must_say(self, text: &str) -> Outcome {
        assert!(self.stderr.contains(text), "expected {text:?}: {self}");
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { code, stdout, stderr, arguments, .. } = self;
        write!(f, "`{arguments}` exited with {code:?}\n-- stdout\n{stdout}\n-- stderr\n{stderr}")
    }
}

fn listen(stream: impl Read + Send + 'static, said: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            said.lock().unwrap().push(line);
        }
    })
}

fn collect(mut stream: impl Read + Send + 'static, text: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        *text.lock().unwrap() = all;
    })
}
