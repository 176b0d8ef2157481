//! TLS to a MySQL or MariaDB server: whom we trust. Used by `connect.rs`; the driver does the
//! rest, and sends no credential to a server that offers no TLS.
//!
//! Surprise: for `verify-ca` the driver is told to expect a host of a peculiar name. It forgives
//! a certificate that names another host only if the complaint contains `NotValidForName`, which
//! rustls nowadays writes in words; the name that was expected is among them. Should that change,
//! `verify-ca` refuses every server, and a test says so.

use std::path::Path;

use mysql_async::{ClientIdentity, SslOpts};
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::config::{Config, TlsMode};
use crate::error::{Code, Error, Result};

const ANY_NAME: &str = "NotValidForName.invalid";

/// What the driver is told about TLS; `None` for plain text.
///
/// # Errors
/// `tls`, for files that cannot be read, and when no authority is trusted.
pub fn options(config: &Config) -> Result<Option<SslOpts>> {
    if config.tls == TlsMode::Disable {
        return Ok(None);
    }
    // Of no consequence if somebody has chosen one before; the choice is the same.
    let _ = ring::default_provider().install_default();
    let options = SslOpts::default();
    let options = match (config.tls, &config.root_certificate) {
        // The driver's own authorities are only there to satisfy it: none is asked.
        (TlsMode::Require, None) => options.with_danger_accept_invalid_certs(true),
        (TlsMode::VerifyFull, _) => trusting(config, options)?,
        // As libpq: with an authority named, `require` verifies it.
        _ => trusting(config, options)?
            .with_danger_skip_domain_validation(true)
            .with_danger_tls_hostname_override(Some(ANY_NAME)),
    };
    let Some((certificate, key)) = &config.client_certificate else { return Ok(Some(options)) };
    let identity = ClientIdentity::new(certificate.clone().into(), key.clone().into());
    Ok(Some(options.with_client_identity(Some(identity))))
}

/// Trusts the authorities that were named, or else those that this machine trusts, and no others.
fn trusting(config: &Config, options: SslOpts) -> Result<SslOpts> {
    let found = match &config.root_certificate {
        Some(file) => certificates(config, file)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let usable = |certificate: &CertificateDer<'static>| {
        RootCertStore::empty().add(certificate.clone()).is_ok()
    };
    let roots: Vec<CertificateDer<'static>> = found.into_iter().filter(usable).collect();
    if roots.is_empty() {
        return Err(match &config.root_certificate {
            Some(file) => failed(config, &format!("{} holds no authority", file.display())),
            None => failed(
                config,
                "this machine trusts no certificate authority; name one with sslrootcert=FILE",
            ),
        });
    }
    let roots = roots.into_iter().map(|root| root.to_vec().into()).collect();
    Ok(options.with_disable_built_in_roots(true).with_root_certs(roots))
}

fn certificates(config: &Config, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(file)?.collect::<std::result::Result<Vec<_>, _>>();
    read().map_err(|error| failed(config, &format!("read {}: {error}", file.display())))
}

fn failed(config: &Config, what: &str) -> Error {
    Error::stop(Code::Tls, format!("establish TLS with {}: {what}", config.address()))
}
