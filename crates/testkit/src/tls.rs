//! Certificates for one test: an authority of its own, a server on this machine, and a client.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// What both ends of a TLS connection need.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The authority's certificate, as PEM: what a client trusts (`sslrootcert`).
    pub authority: String,
    /// For a server called `localhost` or `127.0.0.1`.
    pub server: Identity,
    /// For a client whose common name is the user's.
    pub client: Identity,
}

impl Certificates {
    /// New ones; `user` is whom the client's certificate speaks for.
    pub fn new(user: &str) -> Self {
        Self::make(user).unwrap_or_else(|error| panic!("no certificates for a test: {error}"))
    }

    fn make(user: &str) -> Result<Self, rcgen::Error> {
        let mut authority = named("crossfade test authority", Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = authority.self_signed(&key)?.pem();
        let issuer = Issuer::new(authority, key);

        let mut server = named("localhost", vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let mut client = named(user, Vec::new())?;
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(Self { authority: certificate, server: signed(server, &issuer)?, client: signed(client, &issuer)? })
    }

    /// Writes `authority.crt`, `client.crt` and `client.key` into a folder, for a spec to name.
    pub fn write_to(&self, folder: &Path) {
        let files = [
            ("authority.crt", &self.authority),
            ("client.crt", &self.client.certificate),
            ("client.key", &self.client.key),
        ];
        for (name, content) in files {
            let path = folder.join(name);
            let written =
                fs::write(&path, content).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)));
            written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

fn named(name: &str, places: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(places)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn signed(params: CertificateParams, issuer: &Issuer<'_, KeyPair>) -> Result<Identity, rcgen::Error> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?.pem();
    Ok(Identity { certificate, key: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{Postgres, Settings, Version};
    use std::process::Command;

    /// psql knows better than we do what a right certificate is.
    fn psql(server: &Postgres, rest: &str) -> bool {
        let out = Command::new("/usr/lib/postgresql/15/bin/psql")
            .args(["-XAtc", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"])
            .arg(format!(
                "host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user=postgres {rest}",
                server.port()
            ))
            .output()
            .unwrap();
        out.status.success() && out.stdout == b"t\n"
    }

    #[test]
    fn a_server_shows_its_certificate_and_asks_for_the_clients() {
        let (ours, others) = (Certificates::new("postgres"), Certificates::new("postgres"));
        let hba = "hostssl all all 127.0.0.1/32 cert\n";
        let Some(server) = Postgres::start(Version::V15, Settings::new().tls(&ours).hba(hba)) else { return };
        let folder = tempfile::tempdir().unwrap();
        ours.write_to(folder.path());
        fs::write(folder.path().join("other.crt"), &others.authority).unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let client = format!("sslcert={} sslkey={}", at("client.crt"), at("client.key"));
        let root = format!("sslmode=verify-full sslrootcert={}", at("authority.crt"));

        assert!(psql(&server, &format!("{root} {client}")));
        assert!(!psql(&server, &root), "without a client's certificate");
        assert!(!psql(&server, &format!("sslmode=disable {client}")), "without TLS");
        let foreign = format!("sslmode=verify-full sslrootcert={}", at("other.crt"));
        assert!(!psql(&server, &format!("{foreign} {client}")), "a foreign authority");
    }
}
