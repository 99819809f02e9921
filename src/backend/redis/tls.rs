//! TLS: who is trusted, and who we say we are.
//!
//! Nothing is trusted without a reason: there is no way to turn verification off. A server with a certificate of its own making is
//! reached by naming the authority that made it.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::Tls;

/// Reads the files. Done for every connection: a certificate may have been replaced.
pub(super) fn connector(tls: &Tls) -> Result<TlsConnector, String> {
    if let Some(name) = &tls.server_name {
        server_name(name)?;
    }
    let roots = match &tls.ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("ca", path)? {
                roots
                    .add(certificate)
                    .map_err(|error| format!("{}, named as ca, can't be used: {error}", path.display()))?;
            }
            Arc::new(roots)
        }
        None => system_roots()?,
    };
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let config = match (&tls.cert, &tls.key) {
        (None, None) => config.with_no_client_auth(),
        (Some(cert), Some(path)) => {
            let key = PrivateKeyDer::from_pem_file(path).map_err(|error| {
                format!(
                    "{}, named as key, has no private key in PEM that is not encrypted: {error}",
                    path.display()
                )
            })?;
            config
                .with_client_auth_cert(certificates("cert", cert)?, key)
                .map_err(|error| format!("cert and key do not go together: {error}"))?
        }
        (Some(_), None) => return Err("it names a cert without its key".into()),
        (None, Some(_)) => return Err("it names a key without its cert".into()),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bad = |error: &dyn std::fmt::Display| {
        format!(
            "{}, named as {what}, has no certificates in PEM: {error}",
            path.display()
        )
    };
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| bad(&error))?;
    if all.is_empty() {
        return Err(bad(&"there is none in it"));
    }
    Ok(all)
}

/// Those of the system, read once: there are many.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Ok(roots.clone());
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("this system names no authorities that it trusts: name one, ?ca=/path/to/ca.pem".into());
    }
    Ok(ROOTS.get_or_init(|| Arc::new(roots)).clone())
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned()).map_err(|_| {
        "the name to look for in the server's certificate is neither a host's name nor an IP address".into()
    })
}

/// Speaks TLS over a connection to `host`.
pub(super) async fn wrap<S: AsyncRead + AsyncWrite + Unpin>(
    tls: &Tls,
    host: &str,
    stream: S,
) -> io::Result<TlsStream<S>> {
    let connector = connector(tls).map_err(io::Error::other)?;
    let name = server_name(tls.server_name.as_deref().unwrap_or(host)).map_err(io::Error::other)?;
    connector.connect(name, stream).await
}
