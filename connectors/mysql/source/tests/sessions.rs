//! Sessions: TLS by certificates of a private authority, the ways to log in, and networks that
//! swallow everything.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::super::super::config::Config;
use super::super::super::connect::{self, Role};
use super::super::super::testing::Server;
use super::*;

/// An authority of its own, and a certificate by it for `localhost`.
struct Certificates {
    directory: TempDir,
}

impl Certificates {
    fn make() -> Certificates {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        let openssl = |args: &str| {
            let done = Command::new("openssl").args(args.split(' ')).current_dir(path).output();
            let done = done.expect("openssl is missing; run `apt-get install openssl`");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        };
        let new_key = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        for authority in ["ca", "other"] {
            openssl(&format!(
                "{new_key} -x509 -days 2 -subj /CN={authority} -keyout {authority}.key \
                 -out {authority}.pem"
            ));
        }
        openssl(&format!("{new_key} -subj /CN=server -keyout server.key -out server.csr"));
        std::fs::write(path.join("names"), "subjectAltName = DNS:localhost").unwrap();
        openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile names -out server.pem",
        );
        // The server runs as another user than the test.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let key = path.join("server.key");
        std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o644)).unwrap();
        Certificates { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn settings(&self) -> Vec<String> {
        let setting = |name: &str, file: &str| format!("--ssl-{name}={}", self.path(file));
        vec![setting("cert", "server.pem"), setting("key", "server.key"), setting("ca", "ca.pem")]
    }
}

async fn connect(url: &str) -> Result<(), Code> {
    let config = Arc::new(Config::parse(url).unwrap());
    let session = connect::connect(&config, Role::Source).await;
    session.map(drop).map_err(|error| {
        assert!(!error.message.contains("secret"), "{error}");
        error.code
    })
}

async fn server_with_users(settings: &[String], statements: &str) -> (Server, u16) {
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let database = Database::alone(&settings).await;
    testing::run(&mut database.client().await, statements).await;
    let server = Arc::try_unwrap(database.server).ok().unwrap();
    let port = server.port();
    (server, port)
}

const USER: &str = "CREATE USER tls@'127.0.0.1' IDENTIFIED BY 'secret word' REQUIRE SSL";

#[tokio::test]
async fn s102_a_certificate_is_verified_as_asked_and_never_less() {
    let certificates = Certificates::make();
    let (_server, port) = server_with_users(&certificates.settings(), USER).await;
    let (ca, other) = (certificates.path("ca.pem"), certificates.path("other.pem"));
    let url = |host: &str, parameters: &str| {
        format!("mysql://tls:secret%20word@{host}:{port}/information_schema?{parameters}")
    };
    let full = format!("sslmode=verify-full&sslrootcert={ca}");
    assert_eq!(connect(&url("localhost", &full)).await, Ok(()));
    assert_eq!(connect(&url("127.0.0.1", &full)).await, Err(Code::Tls), "another name");
    let any_name = format!("sslmode=verify-ca&sslrootcert={ca}");
    assert_eq!(connect(&url("127.0.0.1", &any_name)).await, Ok(()), "the chain counts");
    for mode in ["verify-full", "verify-ca", "require"] {
        let wrong = format!("sslmode={mode}&sslrootcert={other}");
        assert_eq!(connect(&url("localhost", &wrong)).await, Err(Code::Tls), "{mode}");
    }
    // Nobody but us knows this authority.
    assert_eq!(connect(&url("localhost", "sslmode=verify-full")).await, Err(Code::Tls));
    assert_eq!(connect(&url("localhost", "sslmode=require")).await, Ok(()));
    let plain = connect(&url("localhost", "sslmode=disable")).await;
    assert_eq!(plain, Err(Code::Authentication), "the server wants TLS of us");
    let wrong = url("localhost", &full).replace("%20word", "");
    assert_eq!(connect(&wrong).await, Err(Code::Authentication));
}

#[tokio::test]
async fn s101_a_server_without_tls_is_refused() {
    if testing::is_mysql() {
        // There it cannot be switched off any more.
        return;
    }
    let (_server, port) = server_with_users(&["--ssl=OFF".into()], "DO 1").await;
    let url = format!("mysql://root:correct%20horse@localhost:{port}/mysql?sslmode=require");
    assert_eq!(connect(&url).await, Err(Code::Tls));
}

#[tokio::test]
async fn every_kind_of_password_logs_in() {
    let (settings, create) = match testing::is_mysql() {
        true => (vec![], "CREATE USER u@'127.0.0.1' IDENTIFIED WITH caching_sha2_password BY 'x'"),
        false => (
            vec!["--plugin-load-add=auth_ed25519".to_owned()],
            "CREATE USER u@'127.0.0.1' IDENTIFIED VIA ed25519 USING PASSWORD('x')",
        ),
    };
    let (_server, port) = server_with_users(&settings, create).await;
    let url = format!("mysql://u:x@localhost:{port}/information_schema");
    assert_eq!(connect(&url).await, Ok(()));
    assert_eq!(connect(&url.replace(":x@", ":y@")).await, Err(Code::Authentication));
    assert_eq!(connect(&url.replace(":x@", "@")).await, Err(Code::Authentication));
}

/// A way to the server that swallows everything once `swallow` is notified.
async fn proxy(port: u16, swallow: Arc<tokio::sync::Notify>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let swallow = Arc::clone(&swallow);
            tokio::spawn(async move {
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                    () = swallow.notified() => {
                        drop(far);
                        // The near end stays open, and nobody answers.
                        tokio::time::sleep(Duration::from_secs(300)).await;
                        drop(near);
                    }
                }
            });
        }
    });
    ours
}

#[tokio::test]
async fn s44_a_network_that_swallows_everything_is_noticed() {
    let server = Server::shared().await;
    let swallow = Arc::new(tokio::sync::Notify::new());
    let port = proxy(server.port(), Arc::clone(&swallow)).await;
    let url = format!("mysql://root:correct%20horse@127.0.0.1:{port}/mysql");
    let config = Arc::new(Config::parse(&url).unwrap());
    let mut session = connect::connect(&config, Role::Source).await.unwrap();
    // A statement that takes longer than our patience is waited for.
    let slept = session.query("sleep", "SELECT SLEEP(17)").await.unwrap();
    assert_eq!(slept.len(), 1);
    swallow.notify_waiters();
    let began = Instant::now();
    let error = session.query("ask", "SELECT 1").await.unwrap_err();
    assert!(error.is_transient() && error.code == Code::Unreachable, "{error}");
    assert!(began.elapsed() < Duration::from_secs(60));
    let error = session.query("ask again", "SELECT 1").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_session_whose_statement_was_cut_off_is_not_used_again() {
    let database = Database::create().await;
    let mut session = database.session(Role::Source).await;
    let cut =
        tokio::time::timeout(Duration::from_millis(50), session.query("sleep", "SELECT SLEEP(5)"));
    assert!(cut.await.is_err());
    assert!(!session.is_usable());
    assert!(session.query("ask", "SELECT 1").await.unwrap_err().is_transient());
    let mut session = database.session(Role::Source).await;
    assert!(session.query("ask", "SELECT nonsense").await.is_err());
    assert_eq!(session.query("ask", "SELECT 1").await.unwrap().len(), 1, "an error is an answer");
}

#[tokio::test]
async fn s45_a_log_that_falls_silent_is_noticed() {
    let mut fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let swallow = Arc::new(tokio::sync::Notify::new());
    let port = proxy(fixture.database.server.port(), Arc::clone(&swallow)).await;
    let url = format!("mysql://root:correct%20horse@127.0.0.1:{port}/{}", fixture.database.name);
    fixture.source = source(&url, &SourceOptions::new("x", 1 << 20)).unwrap();
    let (_, mut stream) = fixture.start().await;
    fixture.read_all(&mut stream).await;
    swallow.notify_waiters();
    let began = Instant::now();
    let error = loop {
        // Whoever asks may be in a hurry.
        match tokio::time::timeout(Duration::from_millis(500), stream.next()).await {
            Ok(Err(error)) => break error,
            _ => assert!(began.elapsed() < Duration::from_secs(45)),
        }
    };
    assert!(error.is_transient() && error.code == Code::Unreachable, "{error}");
}
