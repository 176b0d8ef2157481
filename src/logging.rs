//! Logs on stderr, one line each, and a word about every panic.
//! Surprise: only `tracing` is connected, not the `log` facade, through which database libraries
//! print statements with their parameters, which are row values.

use std::io::{self, IsTerminal as _, Write};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

use clap::ValueEnum;
use connectors::error::{Code, Error, Result};
use indicatif::MultiProgress;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The bars on the terminal, which have to make room for a log line.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Starts logging to stderr. `default_filter` holds where `DRIFTLESS_LOG` says nothing.
///
/// # Errors
/// If `DRIFTLESS_LOG` is no filter.
pub fn start(format: LogFormat, default_filter: &str) -> Result<()> {
    let filter = match std::env::var("DRIFTLESS_LOG") {
        Ok(filter) if !filter.is_empty() => filter,
        Ok(_) | Err(_) => default_filter.to_owned(),
    };
    let filter = EnvFilter::builder().parse(&filter).map_err(|error| {
        let help = "write for instance DRIFTLESS_LOG=info or DRIFTLESS_LOG=warn,connectors=debug";
        Error::stop(Code::Configuration, format!("DRIFTLESS_LOG is no filter: {error}; {help}"))
    })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(Stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|_| Error::stop(Code::Internal, "logging was started twice"))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// The bars of this process; made when they are first asked for.
pub fn bars() -> &'static MultiProgress {
    BARS.get_or_init(MultiProgress::new)
}

/// Says where a panic was. Its message is repeated only if it is a constant: one that was put
/// together may hold a row value.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or_default();
    tracing::error!(location, message, thread, "panic, a defect in driftless");
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        // Asked for with RUST_BACKTRACE; names of functions only.
        let _ = writeln!(io::stderr(), "{backtrace}");
    }
}

/// Where log lines go.
struct Stderr;

/// One log line, written at once.
struct Line;

impl MakeWriter<'_> for Stderr {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line
    }
}

impl Write for Line {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let line = one_line(text);
        match BARS.get() {
            Some(bars) => bars.suspend(|| io::stderr().write_all(&line))?,
            None => io::stderr().write_all(&line)?,
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The text with line breaks only at its end, so that nothing logged can look like another line.
fn one_line(text: &[u8]) -> Vec<u8> {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut line: Vec<u8> =
        body.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect();
    line.extend_from_slice(&text[body.len()..]);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_is_one_line() {
        assert_eq!(one_line(b"a\nb\r\nc\n"), b"a b  c\n");
        assert_eq!(one_line(b"\n"), b"\n");
        assert_eq!(one_line(b"part"), b"part");
    }
}
