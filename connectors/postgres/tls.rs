//! TLS to a PostgreSQL server: the request to switch, and whom we trust. Used by `connect.rs`.
//!
//! Surprise: a server that answers "no TLS" is an error before any credential is sent; there is
//! no way back to plain text.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::config::{Config, TlsMode};
use super::paced::Paced;
use crate::error::{Code, Error, Result};

// Protocol version 1234.5679 in a packet of 8 bytes.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Asks the server for TLS and establishes it as the configuration demands.
///
/// # Errors
/// `tls` (stop) when the server has none or is not whom it should be; `unreachable` when the
/// connection breaks.
pub async fn establish(
    config: &Config,
    host: &str,
    mut socket: Paced<TcpStream>,
) -> Result<TlsStream<Paced<TcpStream>>> {
    let connector = TlsConnector::from(Arc::new(client_config(config)?));
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| failed(config, format!("{host:?} is not a host name")))?;
    socket.write_all(&SSL_REQUEST).await.map_err(|error| broken(config, &error))?;
    // One byte and no more: whatever else is on the wire must be TLS.
    match socket.read_u8().await.map_err(|error| broken(config, &error))? {
        b'S' => {}
        b'N' => {
            return Err(failed(
                config,
                "the server does not offer TLS; set `ssl = on` there, or write sslmode=disable \
                 if plain text is meant",
            ));
        }
        other => {
            return Err(failed(config, format!("the server answered byte {other} to SSLRequest")));
        }
    }
    connector.connect(name, socket).await.map_err(|error| handshake(config, &error))
}

fn handshake(config: &Config, error: &std::io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(reason)) => failed(
            config,
            format!(
                "the server's certificate is not accepted ({reason}); name its authority with \
                 sslrootcert=FILE and connect to the host that it names"
            ),
        ),
        Some(error) => failed(config, error.to_string()),
        None => broken(config, error),
    }
}

fn failed(config: &Config, what: impl std::fmt::Display) -> Error {
    Error::stop(Code::Tls, format!("establish TLS with {}: {what}", config.address()))
}

fn broken(config: &Config, error: &std::io::Error) -> Error {
    let message = format!("establish TLS with {}: {error}", config.address());
    Error::transient(Code::Unreachable, message)
}

fn client_config(config: &Config) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(config, error))?;
    let builder = match config.tls {
        // As libpq: with an authority named, `require` verifies it.
        TlsMode::Require | TlsMode::Disable if config.root_certificate.is_none() => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer { provider }))
        }
        TlsMode::Require | TlsMode::Disable | TlsMode::VerifyCa => {
            let roots = Arc::new(roots(config)?);
            let inner = WebPkiServerVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| failed(config, error))?;
            let verifier = Arc::new(AnyName { inner });
            builder.dangerous().with_custom_certificate_verifier(verifier)
        }
        TlsMode::VerifyFull => builder.with_root_certificates(roots(config)?),
    };
    let Some((certificate, key)) = &config.client_certificate else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(config, certificate)?;
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| failed(config, format!("read {}: {error}", key.display())))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| failed(config, error))
}

fn roots(config: &Config) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    match &config.root_certificate {
        Some(file) => {
            for certificate in certificates(config, file)? {
                store
                    .add(certificate)
                    .map_err(|error| failed(config, format!("read {}: {error}", file.display())))?;
            }
        }
        None => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if store.is_empty() {
        return Err(failed(
            config,
            "this machine trusts no certificate authority; name one with sslrootcert=FILE",
        ));
    }
    Ok(store)
}

fn certificates(config: &Config, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(file)?.collect::<std::result::Result<Vec<_>, _>>();
    read().map_err(|error| failed(config, format!("read {}: {error}", file.display())))
}

/// `verify-ca`: the chain counts, the name does not.
#[derive(Debug)]
struct AnyName {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        // The chain is verified before the name, so a wrong name means a good chain.
        match self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        ) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// `require`: any certificate will do, but its owner must hold the key.
#[derive(Debug)]
struct AnyServer {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
