//! An authority of a test's own, with certificates for a server and for a client, as files.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// OpenSSL takes a certificate with the name of its issuer for one that has signed itself.
fn named(params: &mut CertificateParams, name: &str) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
}

/// Files in a folder that goes with the value.
pub struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// For a server that is reached as `127.0.0.1` or as `name`.
    pub fn new(name: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("relatch-tls-")
            .tempdir()
            .expect("the system has a directory for temporary files");
        let made = Self { directory };

        let key = KeyPair::generate().expect("a key");
        let mut authority = CertificateParams::new(Vec::new()).expect("no names");
        named(&mut authority, "authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = authority.self_signed(&key).expect("a certificate");
        made.write("ca.pem", &certificate.pem());
        let issuer = Issuer::new(authority, key);
        for (file, names) in [
            ("server", vec!["127.0.0.1".to_owned(), name.to_owned()]),
            ("client", Vec::new()),
        ] {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(names).expect("names");
            named(&mut params, file);
            let certificate = params.signed_by(&key, &issuer).expect("a certificate");
            made.write(&format!("{file}.pem"), &certificate.pem());
            made.write(&format!("{file}.key"), &key.serialize_pem());
        }
        made
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.directory.path().join(file), text).expect("a file can be written");
    }

    /// `ca.pem`, `server.pem`, `server.key`, `client.pem` or `client.key`.
    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// What makes a redis-server speak TLS on a port of its own, and want a client's certificate if `both`.
    pub fn arguments(&self, port: u16, both: bool) -> Vec<String> {
        let path = |file: &str| self.path(file).display().to_string();
        [
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", path("server.pem")),
            ("--tls-key-file", path("server.key")),
            ("--tls-ca-cert-file", path("ca.pem")),
            ("--tls-auth-clients", if both { "yes" } else { "no" }.to_owned()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }

    /// What an address says of them.
    pub fn parameters(&self, both: bool) -> String {
        let path = |file: &str| self.path(file).display().to_string();
        let mut said = format!("ca={}", path("ca.pem"));
        if both {
            said.push_str(&format!(
                "&cert={}&key={}",
                path("client.pem"),
                path("client.key")
            ));
        }
        said
    }
}
