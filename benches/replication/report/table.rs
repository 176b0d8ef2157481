//! The tables on standard output, in Markdown, because that is what they are pasted into.

use std::fmt;

use super::summary::{self, LatencyLine, Line, Ratio};
use super::{Report, Work};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "driftless {}; {}", self.version, self.machine)?;
        if !self.optimised {
            writeln!(f, "This is a debug build: its figures mean nothing.")?;
        }
        for servers in &self.servers {
            writeln!(f, "{servers}")?;
        }
        writeln!(
            f,
            "\nMedians of {} rounds. `driftless /` and `streaming /`: how many times as fast they \
             are as who stands in the row, and the smallest and largest such ratio within a round. \
             CPU: seconds for a million rows.",
            self.rounds
        )?;
        write_works(f, &self.works)?;
        write_latencies(f, &summary::latency_lines(&self.latencies))
    }
}

fn write_works(f: &mut fmt::Formatter<'_>, works: &[Work]) -> fmt::Result {
    if works.is_empty() {
        return Ok(());
    }
    writeln!(
        f,
        "\n| pair | workload | who | rows/s | driftless / | streaming / | sender | source | own \
         | target | own + target | all | MiB |"
    )?;
    writeln!(f, "|{}", "---|".repeat(13))?;
    for line in summary::lines(works) {
        write_work(f, &line)?;
    }
    Ok(())
}

fn write_work(f: &mut fmt::Formatter<'_>, line: &Line) -> fmt::Result {
    let Line { pair, workload, contestant, changes_per_second, cpu, .. } = line;
    let (driftless, streaming) = (in_words(line.driftless), in_words(line.streaming));
    writeln!(
        f,
        "| {pair} | {workload} | {contestant} | {changes_per_second:.0} | {driftless} \
         | {streaming} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {} |",
        cpu.sender,
        cpu.source,
        cpu.own,
        cpu.target,
        cpu.own_and_target,
        cpu.all,
        mebibytes(line.peak_kib)
    )
}

fn write_latencies(f: &mut fmt::Formatter<'_>, lines: &[LatencyLine]) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n| pair | who | commits/s | median ms | 99 % ms | slowest ms | MiB |")?;
    writeln!(f, "|{}", "---|".repeat(7))?;
    for line in lines {
        let LatencyLine { pair, contestant, committed_per_second, .. } = line;
        writeln!(
            f,
            "| {pair} | {contestant} | {committed_per_second:.0} | {:.1} | {:.1} | {:.1} | {} |",
            line.median_ms,
            line.p99_ms,
            line.max_ms,
            mebibytes(line.peak_kib)
        )?;
    }
    Ok(())
}

fn in_words(ratio: Option<Ratio>) -> String {
    ratio.map_or(String::new(), |Ratio { of_medians, least, most }| {
        format!("{of_medians:.2} ({least:.2}-{most:.2})")
    })
}

/// Nothing for whoever has no program of its own.
fn mebibytes(kib: u64) -> String {
    if kib == 0 { String::new() } else { (kib / 1024).to_string() }
}
