//! The house rules that a compiler cannot check; CONTRIBUTING.md says what they are for.
//!
//! Each rule is a function from the project's files to complaints, `file: what is wrong`. A test
//! at the end proves that the rules do complain.

// All of this is test code, also outside functions that carry #[test].
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

const FILE_LINES_MAX: usize = 600;

/// A file's path in the project, with slashes, and its text.
type File = (String, String);

#[test]
fn every_rust_file_says_first_what_it_is_for() {
    must_be_none(headless(&rust_files()));
}

#[test]
fn no_rust_file_is_longer_than_a_person_reads() {
    must_be_none(too_long(&rust_files()));
}

#[test]
fn the_rooms_know_only_whom_they_may_know() {
    must_be_none(wrong_arrows(&rust_files()));
    let manifest = |room: &str| fs::read_to_string(root().join(room).join("Cargo.toml")).unwrap();
    assert!(!manifest("connectors").contains("\nstate"), "connectors depend on state");
    assert!(!manifest("state").contains("\nconnectors"), "state depends on connectors");
}

#[test]
fn nothing_unfinished_is_left_behind() {
    must_be_none(leftovers(&rust_files()));
}

#[test]
fn the_readme_begins_with_what_a_newcomer_types() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    for target in ["demo", "test"] {
        assert!(readme.contains(&format!("make {target}")), "README.md lacks `make {target}`");
        assert!(makefile.contains(&format!("\n{target}:")), "the Makefile lacks {target}");
    }
}

#[test]
fn every_error_code_is_explained_in_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let errors = fs::read_to_string(root().join("connectors/error.rs")).unwrap();
    let codes = errors.lines().filter_map(|line| {
        let (variant, code) = line.trim().split_once(" => \"")?;
        variant.starts_with("Code::").then(|| code.trim_end_matches("\","))
    });
    let missing: Vec<&str> = codes.filter(|code| !readme.contains(&format!("`{code}`"))).collect();
    assert!(missing.is_empty(), "README.md does not explain {missing:?}");
}

fn headless(files: &[File]) -> Vec<String> {
    let bad = files.iter().filter(|(_, text)| !text.starts_with("//! "));
    bad.map(|(path, _)| format!("{path}: does not begin with //!")).collect()
}

fn too_long(files: &[File]) -> Vec<String> {
    let long = files.iter().map(|(path, text)| (path, text.lines().count()));
    long.filter(|&(_, lines)| lines > FILE_LINES_MAX)
        .map(|(path, lines)| format!("{path}: {lines} lines, more than {FILE_LINES_MAX}"))
        .collect()
}

fn wrong_arrows(files: &[File]) -> Vec<String> {
    let forbidden = [
        ("connectors/", "state::"),
        ("connectors/", "driftless::"),
        ("state/", "connectors::"),
        ("state/", "driftless::"),
        ("connectors/postgres/", "mysql::"),
        ("connectors/postgres/", "mysql_async"),
        ("connectors/postgres/", "sqlite::"),
        ("connectors/postgres/", "rusqlite"),
        ("connectors/mysql/", "postgres::"),
        ("connectors/mysql/", "tokio_postgres"),
        ("connectors/mysql/", "sqlite::"),
        ("connectors/mysql/", "rusqlite"),
        ("connectors/sqlite/", "mysql::"),
        ("connectors/sqlite/", "mysql_async"),
        ("connectors/sqlite/", "postgres::"),
        ("connectors/sqlite/", "tokio_postgres"),
    ];
    let mut complaints = Vec::new();
    for (path, text) in files {
        for (_, words) in forbidden.iter().filter(|(room, _)| path.starts_with(room)) {
            let knows = |line: &&str| {
                let code = line.split("//").next().unwrap_or_default();
                code.match_indices(words).any(|(at, _)| begins_a_word(code, at))
            };
            if let Some(line) = text.lines().find(knows) {
                complaints.push(format!("{path}: must not know {words}: {}", line.trim()));
            }
        }
    }
    complaints
}

/// `state::` in `use state::…`, but not in `crate::state::` or `my_state::`.
fn begins_a_word(code: &str, at: usize) -> bool {
    let before = code[..at].chars().next_back();
    match before {
        None => true,
        Some(':') => code[..at].ends_with("crate::"),
        Some(before) => !before.is_alphanumeric() && before != '_',
    }
}

fn leftovers(files: &[File]) -> Vec<String> {
    // Written in two halves, so that this file does not complain about itself.
    let words =
        [("TO", "DO"), ("FIX", "ME"), ("dbg", "!("), ("unimplemented", "!("), ("todo", "!(")];
    let mut complaints = Vec::new();
    for (path, text) in files {
        for (head, tail) in words {
            if text.contains(&format!("{head}{tail}")) {
                complaints.push(format!("{path}: contains {head}{tail}"));
            }
        }
    }
    complaints
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files() -> Vec<File> {
    let mut files = Vec::new();
    for room in ["src", "connectors", "state", "tests", "benches"] {
        collect(&root().join(room), &mut files);
    }
    assert!(files.len() > 20, "found only {} files, so nothing was checked", files.len());
    files
}

fn collect(directory: &Path, files: &mut Vec<File>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
            files.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

#[track_caller]
fn must_be_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn the_rules_complain_about_what_breaks_them() {
    let file = |path: &str, text: &str| vec![(path.to_owned(), text.to_owned())];
    assert_eq!(headless(&file("src/a.rs", "fn main() {}")).len(), 1);
    assert_eq!(too_long(&file("src/a.rs", &"\n".repeat(601))).len(), 1);
    assert_eq!(wrong_arrows(&file("connectors/a.rs", "use state::Store;")).len(), 1);
    assert_eq!(wrong_arrows(&file("connectors/sqlite/a.rs", "use crate::postgres::sql;")).len(), 1);
    assert_eq!(wrong_arrows(&file("connectors/a.rs", "use crate::memory::state::It;")).len(), 0);
    assert_eq!(wrong_arrows(&file("src/a.rs", "use state::Store;")).len(), 0);
    assert_eq!(leftovers(&file("src/a.rs", &format!("// {}{}", "TO", "DO"))).len(), 1);
}
