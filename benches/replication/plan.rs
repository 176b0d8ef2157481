//! What is to be measured: words and flags of the command line, and variables.

use std::env;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use driftless::demo::{Error, Result};

use crate::contestant::Contestant;
use crate::pair::Pair;
use crate::peers;
use crate::workloads::{Size, Workload};

/// Below this pgbench would have nothing to do.
const ROWS_MIN: u64 = 100;

/// What the command line understands.
pub const USAGE: &str = "\
usage: make bench ARGS='[WORD...] [--rows N] [--rounds N] [--json FILE]'
  a WORD chooses: a workload (inserts-N, durable, updates, pgbench, hot, copy, huge, latency, or
  `all` of them), a pair (postgres-postgres, mariadb-mariadb, mariadb-postgres), or who takes part
  (driftless, driftless-streaming, native, native-durable, native-relayed, native-relaxed, sender,
  both-ends, pgcopydb, pipe, pipe-binary). What no word chooses is as usual.
  --rows N     how large everything is: inserted rows; 1000000 when not given
  --rounds N   how often everybody does everything; 3 when not given
  --json FILE  where every measurement is written; target/bench/replication.json when not given";

/// What is to be measured.
pub struct Plan {
    /// From what to what.
    pub pairs: Vec<Pair>,
    /// What is asked.
    pub workloads: Vec<Workload>,
    /// Of whom, where they can.
    pub contestants: Vec<Contestant>,
    /// How large.
    pub size: Size,
    /// How often.
    pub rounds: usize,
    /// Where every measurement is written.
    pub json: PathBuf,
}

/// What was chosen, by words or by variables.
#[derive(Default)]
struct Words {
    pairs: Vec<Pair>,
    workloads: Vec<Workload>,
    contestants: Vec<Contestant>,
}

impl Words {
    fn add(&mut self, word: &str) -> Result<()> {
        if word == "all" {
            self.workloads.extend(Workload::ALL);
        } else if let Ok(workload) = word.parse() {
            self.workloads.push(workload);
        } else if let Ok(pair) = word.parse() {
            self.pairs.push(pair);
        } else if let Ok(contestant) = word.parse() {
            self.contestants.push(contestant);
        } else {
            return Err(Error(format!("{word:?} is not understood\n{USAGE}")));
        }
        Ok(())
    }
}

impl Plan {
    /// Reads the variables, then the command line; `None` if only help is wanted.
    pub fn read() -> Result<Option<Plan>> {
        let mut words = Words::default();
        for variable in ["BENCH_PAIRS", "BENCH_WORKLOADS", "BENCH_CONTESTANTS"] {
            let listed = env::var(variable).unwrap_or_default();
            for word in listed.split(',').filter(|word| !word.is_empty()) {
                words.add(word)?;
            }
        }
        let mut rows = env::var("BENCH_ROWS").unwrap_or_else(|_| "1000000".into());
        let mut rounds = env::var("BENCH_ROUNDS").unwrap_or_else(|_| "3".into());
        let mut json = None;
        let mut given = env::args().skip(1);
        while let Some(argument) = given.next() {
            let mut value =
                || given.next().ok_or_else(|| Error(format!("{argument} needs a value\n{USAGE}")));
            match argument.as_str() {
                // What `cargo bench` says to every program.
                "--bench" => {}
                "--rows" => rows = value()?,
                "--rounds" => rounds = value()?,
                "--json" => json = Some(value()?.into()),
                "--help" | "-h" => return Ok(None),
                word => words.add(word)?,
            }
        }
        let mut contestants = chosen(words.contestants, &Contestant::ALL);
        contestants.retain(|&contestant| match peers::missing(contestant) {
            None => true,
            Some(why) => {
                eprintln!("== {contestant} is left out: {why}");
                false
            }
        });
        Ok(Some(Plan {
            pairs: chosen(words.pairs, &Pair::ALL),
            workloads: chosen(words.workloads, &Workload::USUAL),
            contestants,
            size: Size(number(&rows, ROWS_MIN, "rows")?),
            rounds: number(&rounds, 1, "rounds")? as usize,
            json: json.unwrap_or_else(usual_json),
        }))
    }

    /// Who takes part.
    pub fn contestants(&self, pair: Pair, workload: Workload) -> Vec<Contestant> {
        let mut contestants = pair.contestants(workload).to_vec();
        contestants.retain(|contestant| self.contestants.contains(contestant));
        contestants
    }
}

/// Those that take part, in the order of a round: whoever was first is last in the next one.
pub fn in_turns(contestants: &[Contestant], round: usize) -> Vec<Contestant> {
    let mut order = contestants.to_vec();
    order.rotate_left(round % contestants.len().max(1));
    order
}

/// Tells how long a part of the work took.
pub fn took(what: &str, since: Instant) {
    eprintln!("   {what:<66} [{:.1} s]", since.elapsed().as_secs_f64());
}

fn chosen<T: Copy>(words: Vec<T>, usual: &[T]) -> Vec<T> {
    if words.is_empty() { usual.to_vec() } else { words }
}

fn number(text: &str, least: u64, what: &str) -> Result<u64> {
    match u64::from_str(text) {
        Ok(number) if number >= least => Ok(number),
        _ => Err(Error(format!("{what} must be a number from {least}, not {text:?}"))),
    }
}

/// Beside the other things that a build makes.
fn usual_json() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target"));
    target.join("bench").join("replication.json")
}
