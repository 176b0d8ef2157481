//! The configuration as a whole: layers, defaults, bounds, and that no secret is ever repeated.

use std::os::unix::fs::PermissionsExt as _;

use connectors::error::Code;

use super::*;

const URLS: [(&str, &str); 2] =
    [("DRIFTLESS_SOURCE__URL", "postgres://u@h/d"), ("DRIFTLESS_TARGET__URL", "sqlite:r.db")];

fn settings(file: &str, variables: &[(&str, &str)]) -> Result<Settings> {
    let environment = Environment::from_pairs(variables.iter().copied());
    let mut document = Document::parse("d.toml", file)?;
    document.override_from(&environment)?;
    resolve(&document, &environment)
}

fn check_error(file: &str, expected: &str) {
    let error = settings(file, &URLS).unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (Code::Configuration, expected));
}

fn defaults() -> Settings {
    Settings {
        name: "main".into(),
        tables: TablePatterns::parse(&["*.*"], "public").unwrap(),
        table_patterns: vec!["*.*".into()],
        soft_deletes: false,
        batch_rows: 20_000,
        batch_bytes: 8 << 20,
        batch_wait: Duration::from_millis(200),
        memory: 256 << 20,
        stop_on_table_error: false,
        chunk_rows: 10_000,
        copy_workers: 2,
        plain_schema: "public".into(),
        source_url: Secret::new("postgres://u@h/d"),
        server_id: None,
        bulk_read: true,
        streaming: true,
        zero_dates: ZeroDates::Stop,
        accept_cascades: false,
        target_url: Secret::new("sqlite:r.db"),
        state_dir: ".driftless".into(),
    }
}

fn flags(from: &str, to: &str) -> Flags {
    Flags { from: Some(from.into()), to: Some(to.into()), ..Flags::default() }
}

/// A file with this text and mode, in a directory that lives as long as the first value.
fn file(text: &str, mode: u32) -> (tempfile::TempDir, Flags) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    (directory, Flags { config: Some(path), ..Flags::default() })
}

#[test]
fn nothing_but_the_urls_has_to_be_given() {
    assert_eq!(settings("", &URLS).unwrap(), defaults());
}

#[test]
fn the_example_file_holds_every_key_at_its_default() {
    assert_eq!(settings(EXAMPLE, &URLS).unwrap(), defaults());
    let given = Document::parse("example", EXAMPLE).unwrap();
    for (section, key) in document::keys() {
        let commented = format!("# {key} = ");
        let no_default = ["http", "source"].contains(&section) && EXAMPLE.contains(&commented);
        assert!(given.has((section, key)) || no_default, "{section}.{key} is not there");
    }
}

#[test]
fn every_key_of_the_file_takes_effect() {
    let file = "
        [pipeline]
        name = \"shop_2\"
        tables = [\"public.*\", \"!public.audit_*\"]
        deletes = \"soft\"
        on_table_stop = \"stop\"
        batch_rows = 1_000
        batch_bytes = \"1MiB\"
        batch_wait = \"1s\"
        memory = \"2MiB\"
        chunk_rows = 7
        copy_workers = 4
        [source]
        url = \"postgres://u:${PW}@h/d\"
        bulk_read = false
        streaming = false
        server_id = 7
        zero_dates = \"null\"
        cascades = \"accept\"
        [target]
        url = \"sqlite:${NAME}.db\"
        [state]
        dir = \"/var/lib/${NAME}\"";
    let patterns = vec!["public.*".to_owned(), "!public.audit_*".to_owned()];
    let expected = Settings {
        name: "shop_2".into(),
        tables: TablePatterns::parse(&patterns, "public").unwrap(),
        table_patterns: patterns,
        soft_deletes: true,
        batch_rows: 1000,
        batch_bytes: 1 << 20,
        batch_wait: Duration::from_secs(1),
        memory: 2 << 20,
        stop_on_table_error: true,
        chunk_rows: 7,
        copy_workers: 4,
        plain_schema: "public".into(),
        source_url: Secret::new("postgres://u:a%40b@h/d"),
        server_id: Some(7),
        bulk_read: false,
        streaming: false,
        zero_dates: ZeroDates::Null,
        accept_cascades: true,
        target_url: Secret::new("sqlite:shop.db"),
        state_dir: "/var/lib/shop".into(),
    };
    assert_eq!(settings(file, &[("PW", "a@b"), ("NAME", "shop")]).unwrap(), expected);
}

#[test]
fn a_value_out_of_bounds_is_named_with_its_place() {
    check_error(
        "[pipeline]\nname = \"Shop\"",
        "d.toml line 2: pipeline.name must be 1 to 50 lower case letters, digits and underscores",
    );
    check_error(
        "pipeline.batch_rows = 0",
        "d.toml line 1: pipeline.batch_rows must be from 1 to 1000000",
    );
    check_error(
        "pipeline.copy_workers = -1",
        "d.toml line 1: pipeline.copy_workers must be from 1 to 64",
    );
    check_error(
        "pipeline.deletes = \"never\"",
        "d.toml line 1: pipeline.deletes must be \"hard\" or \"soft\"",
    );
    check_error(
        "pipeline.batch_bytes = \"8\"",
        "d.toml line 1: pipeline.batch_bytes must be a whole number and one of B, KiB, MiB, GiB, \
         for instance \"8MiB\"",
    );
    check_error(
        "pipeline.batch_wait = \"2m\"",
        "d.toml line 1: pipeline.batch_wait must be at most 1m",
    );
    check_error(
        "pipeline.memory = \"1KiB\"",
        "d.toml line 1: pipeline.memory must be at least 1024 KiB",
    );
    check_error(
        "pipeline.memory = \"12MiB\"",
        "d.toml line 1: pipeline.memory must be at least twice pipeline.batch_bytes, because one \
         batch is built while another is applied",
    );
    check_error(
        "pipeline.tables = [\"!a.b\"]",
        "d.toml line 1: pipeline.tables is wrong: no table pattern includes a table; add for \
         instance \"public.*\"",
    );
    check_error("state.dir = \"\"", "d.toml line 1: state.dir must not be empty");
    check_error(
        "http.listen = \"127.0.0.1:8686\"",
        "d.toml line 1: http.listen is not available yet in this version; remove it, and ask for \
         the health with `driftless status`",
    );
}

#[test]
fn a_url_of_another_database_is_refused() {
    let error = settings("", &[URLS[1], ("DRIFTLESS_SOURCE__URL", "oracle://h/d")]).unwrap_err();
    assert_eq!(
        error.message,
        "the environment variable DRIFTLESS_SOURCE__URL: source.url must begin with postgres:// or \
         mysql://, the sources of this version"
    );
    let error = settings("", &[URLS[0]]).unwrap_err();
    assert_eq!(
        error.message,
        "target.url is missing; put it into driftless.toml or into the environment variable \
         DRIFTLESS_TARGET__URL"
    );
}

#[test]
fn flags_come_before_the_environment() {
    let environment = Environment::from_pairs([URLS[0], ("DRIFTLESS_PIPELINE__NAME", "other")]);
    let flags = Flags {
        tables: Some("a,!b".into()),
        state: Some("s".into()),
        ..flags("postgres://x@y/z", "sqlite:t.db")
    };
    let settings = Settings::load(&flags, &environment).unwrap();
    assert_eq!(settings.source_url.expose(), "postgres://x@y/z");
    assert_eq!(settings.table_patterns, ["a", "!b"]);
    assert_eq!(settings.state_dir, Path::new("s"));
    assert_eq!(settings.name, "other");
}

#[test]
fn flags_that_do_not_belong_together_are_refused() {
    let config = Some(PathBuf::from("d.toml"));
    let alone = Flags { state: Some("s".into()), ..Flags::default() };
    let half = Flags { from: Some("postgres://h/d".into()), ..Flags::default() };
    let both = Flags { config, ..flags("postgres://h/d", "sqlite:t.db") };
    for (flags, expected) in [(alone, "belong to"), (half, "needs --to"), (both, "exclude")] {
        let error = Settings::load(&flags, &Environment::default()).unwrap_err();
        assert_eq!(error.code, Code::Configuration);
        assert!(error.message.contains(expected), "{error}");
    }
}

#[test]
fn a_missing_file_says_how_to_get_one() {
    let flags = Flags { config: Some("/none/d.toml".into()), ..Flags::default() };
    let error = Settings::load(&flags, &Environment::default()).unwrap_err();
    assert_eq!(
        error.message,
        "there is no file /none/d.toml; run `driftless --config /none/d.toml init` to write one"
    );
}

#[test]
fn s109_a_file_with_a_password_that_others_can_read_is_refused() {
    let text = "source.url = \"postgres://u:hunter2@h/d\"\ntarget.url = \"sqlite:t.db\"";
    for mode in [0o640, 0o604, 0o620] {
        let (_directory, flags) = file(text, mode);
        let error = Settings::load(&flags, &Environment::default()).unwrap_err();
        assert!(error.message.contains("run `chmod 600 "), "{error}");
        assert!(!error.message.contains("hunter2"), "{error}");
    }
    let (_directory, flags) = file(text, 0o600);
    Settings::load(&flags, &Environment::default()).unwrap();
}

#[test]
fn s109_a_linked_file_with_a_password_is_refused() {
    let text = "source.url = \"postgres://u:hunter2@h/d\"\ntarget.url = \"sqlite:t.db\"";
    let (directory, flags) = file(text, 0o600);
    let link = directory.path().join("link.toml");
    std::os::unix::fs::symlink(flags.config.unwrap(), &link).unwrap();
    let flags = Flags { config: Some(link), ..Flags::default() };
    let error = Settings::load(&flags, &Environment::default()).unwrap_err();
    assert!(error.message.contains("symbolic link"), "{error}");
}

#[test]
fn a_file_without_a_password_may_be_read_by_anybody() {
    let text = "source.url = \"postgres://u:${PW}@h/d\"\ntarget.url = \"sqlite:t.db\"";
    let (_directory, flags) = file(text, 0o644);
    let environment = Environment::from_pairs([("PW", "x")]);
    let settings = Settings::load(&flags, &environment).unwrap();
    assert_eq!(settings.source_url.expose(), "postgres://u:x@h/d");
}

#[test]
fn s105_no_error_and_no_debug_print_repeats_a_secret() {
    let loaded = settings("", &[URLS[1], ("DRIFTLESS_SOURCE__URL", "postgres://u:hunter2@h/d")]);
    let loaded = loaded.unwrap();
    let printed = format!("{loaded:?} {}", loaded.source_url);
    assert!(!printed.contains("hunter2"), "{printed}");
    for value in ["hunter2", "hunter2:x", "postgres//u:hunter2@h", "u:hunter2@h", "${hunter2!}"] {
        for (section, key) in document::keys() {
            let file = format!("[{section}]\n{key} = \"{value}\"\n");
            if let Err(error) = settings(&file, &[]) {
                // The name of a table is no secret.
                let named = key == "tables" && error.message.contains("table pattern");
                assert!(named || !error.message.contains("hunter2"), "{file}: {error}");
            }
        }
    }
}
