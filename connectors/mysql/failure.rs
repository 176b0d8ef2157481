//! What an error of a server or of the driver means: the reaction, the code, and a message that
//! holds no value and no secret. Pure.
//!
//! Surprise: many messages of the server quote values or whole statements. Unless one is known to
//! speak of settings, objects and resources only, its number is all that is shown.

use mysql_async::{DriverError, IoError};

use crate::error::{Code, Error};

/// What an error of the driver means. `doing` is a verb phrase: "read a chunk of shop.orders".
#[must_use]
pub fn error(doing: &str, failure: &mysql_async::Error) -> Error {
    use mysql_async::Error as Failure;
    match failure {
        Failure::Server(server) => server_error(doing, server.code, &server.state, &server.message),
        Failure::Io(IoError::Tls(failure)) => {
            Error::stop(Code::Tls, format!("{doing}: {}", tls_text(&failure.to_string())))
        }
        Failure::Io(IoError::Io(failure)) => io_error(doing, failure),
        Failure::Driver(DriverError::ConnectionClosed) => {
            Error::transient(Code::Unreachable, format!("{doing}: the connection was closed"))
        }
        Failure::Driver(failure) => driver_error(doing, failure),
        // Neither is about values: a URL is never given to the driver.
        Failure::Url(_) | Failure::Other(_) => {
            Error::stop(Code::Protocol, format!("{doing}: the driver failed"))
        }
    }
}

fn io_error(doing: &str, failure: &std::io::Error) -> Error {
    let tls = failure.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    match tls {
        true => Error::stop(Code::Tls, format!("{doing}: {}", tls_text(&failure.to_string()))),
        false => Error::transient(Code::Unreachable, format!("{doing}: {failure}")),
    }
}

fn tls_text(failure: &str) -> String {
    match failure.contains("certificate") {
        true => format!(
            "the server's certificate is not accepted ({failure}); name its authority with \
             sslrootcert=FILE and connect to the host that it names"
        ),
        false => failure.to_owned(),
    }
}

fn driver_error(doing: &str, failure: &DriverError) -> Error {
    let stop = |code, what: &str| Error::stop(code, format!("{doing}: {what}"));
    match failure {
        DriverError::NoClientSslFlagFromServer => stop(
            Code::Tls,
            "the server does not offer TLS; give it a certificate, or write sslmode=disable if \
             plain text is meant",
        ),
        DriverError::CleartextPluginDisabled => stop(
            Code::Authentication,
            "the server asks for the password in clear text, which is not given; choose another \
             authentication plugin for the account",
        ),
        DriverError::MysqlOldPasswordDisabled => stop(
            Code::Authentication,
            "the server asks for the password in the broken old form, which is not given; set \
             the account's password again with `ALTER USER … IDENTIFIED BY …`",
        ),
        DriverError::UnknownAuthPlugin { name } => stop(
            Code::Authentication,
            &format!(
                "the authentication plugin {name:?} is not known; choose caching_sha2_password, \
                 ed25519 or mysql_native_password for the account"
            ),
        ),
        // The payload of an unexpected packet may hold values, and is not shown.
        failure => stop(Code::Protocol, &failure.to_string()),
    }
}

/// What an error of the server means, by its number.
#[must_use]
pub fn server_error(doing: &str, number: u16, state: &str, text: &str) -> Error {
    let (kind, code) = meaning(number, state);
    // Other messages may quote values or whole statements.
    let what = match is_safe(number, code) {
        true => format!("{doing}: {text} (error {number})"),
        false => format!("{doing}: error {number} (SQLSTATE {state})"),
    };
    match kind {
        Reaction::Wait => Error::transient(code, what),
        Reaction::Stop => Error::stop(code, what),
    }
}

/// What is done about an error of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaction {
    Wait,
    Stop,
}

fn meaning(number: u16, state: &str) -> (Reaction, Code) {
    match number {
        // Wrong name, password, host or plugin; an expired password.
        1045 | 1130 | 1251 | 1524 | 1698 | 1820 | 1862 | 3118 | 3955 | 4151 => {
            (Reaction::Stop, Code::Authentication)
        }
        1049 => (Reaction::Stop, Code::Configuration),
        // Denied, or the server is read-only. 1401 is what MySQL says to an XA RECOVER that it
        // does not allow; no other XA statement is sent.
        1044 | 1095 | 1142 | 1143 | 1227 | 1290 | 1370 | 1401 | 1792 | 1836 => {
            (Reaction::Stop, Code::Permission)
        }
        1054 | 1109 | 1146 => (Reaction::Stop, Code::MissingTable),
        // Too many connections, shutdown, no memory or space, a lock that was not to be had, a
        // deadlock, a connection that was killed or timed out, a limit of time.
        1021
        | 1037
        | 1038
        | 1040
        | 1041
        | 1053
        | 1077
        | 1078
        | 1079
        | 1114
        | 1129
        | 1135
        | 1152
        | 1158..=1161
        | 1180
        | 1181
        | 1184
        | 1203
        | 1205
        | 1206
        | 1213
        | 1226
        | 1317
        | 1927
        | 1969
        | 2006
        | 2013
        | 3024
        | 3101
        | 3168
        | 3169
        | 3572
        | 4031 => (Reaction::Wait, Code::Unreachable),
        // The table is no longer what the snapshot began with; another snapshot may do.
        1412 => (Reaction::Wait, Code::SchemaChange),
        // Values that are too long, out of range or of no sense; keys and conditions they break.
        1048
        | 1062
        | 1216
        | 1217
        | 1264
        | 1265
        | 1292
        | 1300
        | 1364
        | 1366
        | 1406
        | 1411
        | 1427
        | 1451
        | 1452
        | 1525
        | 1526
        | 1690
        | 3140..=3157
        | 3819
        | 4025 => (Reaction::Stop, Code::PoisonRow),
        _ => match state.get(..2) {
            Some("08") => (Reaction::Wait, Code::Unreachable),
            Some("28") => (Reaction::Stop, Code::Authentication),
            Some("21" | "22" | "23") => (Reaction::Stop, Code::PoisonRow),
            _ => (Reaction::Stop, Code::Protocol),
        },
    }
}

/// Whether the message of this error speaks of settings, objects and resources only.
fn is_safe(number: u16, code: Code) -> bool {
    match code {
        Code::PoisonRow => false,
        Code::Protocol => {
            // 1064 quotes the statement; of the others these are known to quote nothing.
            matches!(number, 1047 | 1050 | 1051 | 1113 | 1118 | 1193 | 1231 | 1235 | 1236 | 1381)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn check(number: u16, state: &str, kind: Kind, code: Code, message: &str) {
        let expected = Error { kind, code, message: format!("do it: {message}") };
        assert_eq!(server_error("do it", number, state, "it says so"), expected);
    }

    #[test]
    fn a_server_error_has_one_reaction() {
        let said = |number| format!("it says so (error {number})");
        check(1045, "28000", Kind::Stop, Code::Authentication, &said(1045));
        check(1049, "42000", Kind::Stop, Code::Configuration, &said(1049));
        check(1142, "42000", Kind::Stop, Code::Permission, &said(1142));
        check(1146, "42S02", Kind::Stop, Code::MissingTable, &said(1146));
        check(1040, "08004", Kind::Transient, Code::Unreachable, &said(1040));
        check(1213, "40001", Kind::Transient, Code::Unreachable, &said(1213));
    }

    #[test]
    fn an_error_about_values_does_not_show_them() {
        check(1062, "23000", Kind::Stop, Code::PoisonRow, "error 1062 (SQLSTATE 23000)");
        check(1366, "22007", Kind::Stop, Code::PoisonRow, "error 1366 (SQLSTATE 22007)");
        check(1064, "42000", Kind::Stop, Code::Protocol, "error 1064 (SQLSTATE 42000)");
    }
}
