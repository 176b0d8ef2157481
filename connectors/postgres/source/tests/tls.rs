//! TLS with a server that has it and one that has not, by certificates of a private authority.

use std::process::Command;

use tempfile::TempDir;

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
        Certificates { directory }
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.directory.path().join(name)).unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }
}

/// A server with roles that log in by different methods, all with the same password.
async fn start(certificates: Option<&Certificates>) -> Server {
    let hba = "local all all trust\nHOST all scram all scram-sha-256\nHOST all md5 all md5\n\
               HOST all clear all password\n";
    let mut files = vec![];
    match certificates {
        None => files.push(("pg_hba.conf", hba.replace("HOST", "host").into_bytes())),
        Some(certificates) => {
            files.push(("pg_hba.conf", hba.replace("HOST", "hostssl").into_bytes()));
            files.push(("server.crt", certificates.read("server.pem")));
            files.push(("server.key", certificates.read("server.key")));
            files.push(("postgresql.auto.conf", b"ssl = on\n".to_vec()));
        }
    }
    let server = Server::on_network("localhost", &files);
    let config = crate::postgres::config::Config::parse(&server.url("postgres")).unwrap();
    let client = crate::postgres::connect::connect(&config, "test").await.unwrap();
    for (role, encryption) in
        [("scram", "scram-sha-256"), ("md5", "md5"), ("clear", "scram-sha-256")]
    {
        let create = format!(
            "SET password_encryption = '{encryption}'; \
             CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'secret word'"
        );
        client.batch_execute(&create).await.unwrap();
    }
    server
}

async fn connect(url: &str) -> Result<(), Code> {
    let config = crate::postgres::config::Config::parse(url).unwrap();
    let sql = crate::postgres::connect::connect(&config, "test").await;
    let log = super::super::session::login(&config, "test").await;
    let code = sql.map(drop).map_err(|error| {
        assert!(!error.message.contains("secret"), "{error}");
        error.code
    });
    // The log's own connection is protected by the same code.
    assert_eq!(log.map(drop).map_err(|error| error.code), code, "{url}");
    code
}

#[tokio::test]
async fn s102_a_certificate_is_verified_as_asked_and_never_less() {
    let certificates = Certificates::make();
    let server = start(Some(&certificates)).await;
    let (ca, other) = (certificates.path("ca.pem"), certificates.path("other.pem"));
    let login = "postgres://scram:secret%20word";
    let port = server.port();
    let url = |host: &str, parameters: &str| format!("{login}@{host}:{port}/postgres?{parameters}");
    let full = format!("sslmode=verify-full&sslrootcert={ca}");
    assert_eq!(connect(&url("localhost", &full)).await, Ok(()));
    assert_eq!(connect(&url("127.0.0.1", &full)).await, Err(Code::Tls), "another name");
    let any_name = format!("sslmode=verify-ca&sslrootcert={ca}");
    assert_eq!(connect(&url("127.0.0.1", &any_name)).await, Ok(()));
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
async fn every_kind_of_password_logs_in_to_the_log_and_to_sql() {
    let certificates = Certificates::make();
    let server = start(Some(&certificates)).await;
    for user in ["scram", "md5", "clear"] {
        let port = server.port();
        let url =
            format!("postgres://{user}:secret%20word@localhost:{port}/postgres?sslmode=require");
        assert_eq!(connect(&url).await, Ok(()), "{user}");
    }
}

#[tokio::test]
async fn s101_a_server_without_tls_is_refused() {
    let server = start(None).await;
    let port = server.port();
    let url = format!("postgres://scram:secret%20word@localhost:{port}/postgres?sslmode=require");
    assert_eq!(connect(&url).await, Err(Code::Tls));
}
