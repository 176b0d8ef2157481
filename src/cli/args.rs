//! The words of the command line. Their meaning is in one file a command; the keys of the
//! configuration behind the flags are in `config.rs`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Flags, Settings};
use crate::logging::LogFormat;

/// Replicates PostgreSQL, MySQL and MariaDB tables into another database.
///
/// Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 `verify` found differences.
/// Results go to stdout, logs and progress to stderr; DRIFTLESS_LOG filters the logs.
#[derive(Debug, Parser)]
#[command(name = "driftless", version, max_term_width = 100)]
pub struct Arguments {
    /// What holds for every command.
    #[command(flatten)]
    pub global: GlobalArguments,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Clone, Debug, Args)]
pub struct GlobalArguments {
    /// The configuration file; `driftless.toml` when not given
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How logs are written
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// What driftless can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replicate until stopped; the first copy included
    Run(RunArguments),
    /// Copy existing rows again, beside a running `driftless run` or alone
    Backfill(BackfillArguments),
    /// Is everything ready? Each failure with the SQL or the command that mends it
    Check(CheckArguments),
    /// Position, lag, tables and backfills of a pipeline
    Status(StatusArguments),
    /// Prove source and target equal, or name the keys that differ
    Verify(VerifyArguments),
    /// Write a commented configuration file
    Init(InitArguments),
    /// Drop slot, publication and our own tables; replicated tables stay
    Teardown(TeardownArguments),
    /// A throw-away server, a live workload, kill -9 and resume before your eyes, verified
    Demo(DemoArguments),
}

/// A pipeline without a file. Flattened last, because its heading holds for what follows it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Without a configuration file")]
pub struct PipelineArguments {
    /// The source, `postgres://...` or `mysql://...`. With it, no file is read. Other users of this
    /// machine can see it: write '${PGPASSWORD}' or '${file:/path}' in single quotes in place of the password
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
    /// The target, `postgres://...`, `mysql://...` or `sqlite:path.db`
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
    /// Which tables, for instance 'public.*,!public.audit_*'; when not given, all; of a MySQL
    /// server, all of the URL's database
    #[arg(long, value_name = "PATTERNS")]
    pub tables: Option<String>,
    /// The state directory; `.driftless` when not given
    #[arg(long, value_name = "DIR")]
    pub state: Option<String>,
    /// The pipeline's name; `main` when not given
    #[arg(long, value_name = "NAME")]
    pub pipeline: Option<String>,
}

/// `driftless run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// Stop once everything committed at the source before now is durable in the target
    #[arg(long)]
    pub until_current: bool,
    /// Take the pipeline over from an instance elsewhere, which cannot write any more from then on
    #[arg(long)]
    pub take_over: bool,
    /// Begin a new log and copy everything again; mends a lost slot or a gap
    #[arg(long)]
    pub resync: bool,
    /// Which pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArguments,
}

/// `driftless backfill`.
#[derive(Debug, Args)]
pub struct BackfillArguments {
    /// Only this table; may be given several times
    #[arg(id = "table", long = "table", value_name = "TABLE")]
    pub tables: Vec<String>,
    /// Only rows for which this SQL condition holds
    #[arg(id = "where", long = "where", value_name = "SQL")]
    pub filter: Option<String>,
    /// Take the pipeline over from an instance elsewhere
    #[arg(long)]
    pub take_over: bool,
    /// Which pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArguments,
}

/// `driftless check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// For machines
    #[arg(long)]
    pub json: bool,
    /// Which pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArguments,
}

/// `driftless status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// For machines
    #[arg(long)]
    pub json: bool,
    /// Which pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArguments,
}

/// `driftless verify`.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// Only this table; may be given several times
    #[arg(id = "table", long = "table", value_name = "TABLE")]
    pub tables: Vec<String>,
    /// Mend what differs, and look at it again
    #[arg(long)]
    pub repair: bool,
    /// For machines
    #[arg(long)]
    pub json: bool,
    /// Which pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArguments,
}

/// `driftless teardown`.
#[derive(Debug, Args)]
pub struct TeardownArguments {
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Which pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArguments,
}

/// `driftless init`.
#[derive(Debug, Args)]
pub struct InitArguments {
    /// Replace the file that is there
    #[arg(long)]
    pub force: bool,
}

/// `driftless demo`.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// The server that is replicated from
    #[arg(long, value_enum, value_name = "KIND", default_value_t = DemoSource::Postgres)]
    pub source: DemoSource,
    /// The SQLite file to replicate into; one of an earlier demonstration is replaced
    #[arg(long, value_name = "FILE", default_value = "driftless-demo.db")]
    pub out: PathBuf,
    /// Replace the file whoever made it
    #[arg(long)]
    pub force: bool,
    /// How long the workload lasts
    #[arg(long, value_name = "SECONDS", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// How often the replicator is killed meanwhile
    #[arg(long, value_name = "COUNT", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub kills: u32,
    /// Chooses the workload and the moments of the kills
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
}

/// What a demonstration replicates from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DemoSource {
    /// A PostgreSQL
    Postgres,
    /// A MariaDB
    Mariadb,
}

impl PipelineArguments {
    /// The configuration that these flags and everything else make.
    ///
    /// # Errors
    /// See `Settings::load`.
    pub fn settings(&self, global: &GlobalArguments) -> connectors::error::Result<Settings> {
        let flags = Flags {
            config: global.config.clone(),
            from: self.from.clone(),
            to: self.to.clone(),
            tables: self.tables.clone(),
            state: self.state.clone(),
            pipeline: self.pipeline.clone(),
        };
        Settings::load(&flags, &crate::config::Environment::of_process())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_holds_for_every_command_may_stand_before_or_after_it() {
        for line in [
            "driftless --config a.toml --log-format json run --until-current",
            "driftless run --until-current --config a.toml --log-format json",
        ] {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(arguments.global.config, Some("a.toml".into()));
            assert_eq!(arguments.global.log_format, LogFormat::Json);
        }
    }

    #[test]
    fn the_commands_of_the_contract_are_understood() {
        for line in [
            "run",
            "run --take-over --resync",
            "run --from postgres://h/d --to sqlite:a.db --tables a,!b --state s --pipeline p",
            "backfill",
            "backfill --table a --table b --where 1=1",
            "check",
            "status --json",
            "verify",
            "verify --table a --table b --repair --json",
            "teardown --yes",
            "init",
            "init --force",
            "demo",
            "demo --out a.db --force --seconds 5 --kills 2 --seed 7",
        ] {
            let words = std::iter::once("driftless").chain(line.split(' '));
            assert!(Arguments::try_parse_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_usage_error_has_exit_code_2() {
        let error = Arguments::try_parse_from(["driftless", "run", "--no-such"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
