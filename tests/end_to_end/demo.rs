//! The demonstration that a newcomer sees first.

use crate::support::{Daemon, Outcome};

async fn demo(arguments: &[&str]) -> Outcome {
    let arguments: Vec<String> =
        std::iter::once(&"demo").chain(arguments).map(|word| (*word).to_owned()).collect();
    Daemon::start(&arguments).wait().await
}

async fn check(source: &str) {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("replica.db").display().to_string();
    let short =
        ["--source", source, "--out", &out, "--seconds", "5", "--kills", "2", "--seed", "3"];
    let shown = demo(&short).await.must_exit(0);
    assert!(shown.stdout.contains("Equal, row for row, after 2 kills"), "{shown}");
    // It may replace what it made itself.
    demo(&short).await.must_exit(0);
}

#[tokio::test]
async fn the_demonstration_with_postgres_survives_its_kills_and_ends_equal() {
    check("postgres").await;
}

#[tokio::test]
async fn the_demonstration_with_mariadb_survives_its_kills_and_ends_equal() {
    check("mariadb").await;
}

#[tokio::test]
async fn the_demonstration_replaces_no_file_of_somebody_else() {
    let directory = tempfile::tempdir().unwrap();
    let precious = directory.path().join("precious.db");
    rusqlite::Connection::open(&precious).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    let before = std::fs::read(&precious).unwrap();
    let refused = demo(&["--out", &precious.display().to_string()]).await;
    assert_ne!(refused.code, Some(0), "{refused}");
    refused.must_say("--force");
    assert_eq!(std::fs::read(&precious).unwrap(), before);
}
