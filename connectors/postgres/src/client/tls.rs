//! TLS with rustls: which certificates are believed, and to which one a login is bound.

use crate::{Config, config::SslMode};
use crossfade_connector::Failure;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::{path::Path, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub(super) type Negotiated = tokio_rustls::client::TlsStream<TcpStream>;

pub(super) async fn handshake(config: &Config, host: &str, stream: TcpStream) -> Result<Negotiated, Failure> {
    let doing = || format!("making a TLS connection to {host}");
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| Failure::misconfigured(doing(), error, "Use a host name or an address"))?;
    let connector = TlsConnector::from(Arc::new(client_config(config)?));
    connector.connect(name, stream).await.map_err(|error| {
        // Everything that rustls itself refuses is about certificates or versions; the rest is the network.
        if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
            Failure::misconfigured(
                doing(),
                error,
                "Check that sslrootcert holds the authority of the server's certificate and that the certificate \
                 names this host",
            )
        } else {
            super::broken(doing(), error)
        }
    })
}

fn client_config(config: &Config) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(ring::default_provider());
    let wrong = |error: rustls::Error| {
        Failure::misconfigured("setting up TLS", error, "Check sslcert and sslkey: PEM, and made for each other")
    };
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(wrong)?;
    let builder = match config.ssl_mode() {
        SslMode::Disable | SslMode::Require => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        }
        SslMode::VerifyCa => {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(config)?), provider)
                .build()
                .map_err(|error| Failure::misconfigured("setting up TLS", error, "Check sslrootcert"))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyName(verifier)))
        }
        SslMode::VerifyFull => builder.with_root_certificates(roots(config)?),
    };
    match config.client_cert() {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error))?;
            builder.with_client_auth_cert(certificates(cert)?, key).map_err(wrong)
        }
    }
}

fn unreadable(path: &Path, error: rustls_pki_types::pem::Error) -> Failure {
    Failure::misconfigured(format!("reading {}", path.display()), error, "Give a PEM file that can be read")
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(path, error))
}

fn roots(config: &Config) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    match config.root_cert() {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| {
                    Failure::misconfigured(
                        format!("reading {}", path.display()),
                        error,
                        "Give a PEM file of authorities",
                    )
                })?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(Failure::misconfigured(
            "setting up TLS",
            "there is no certificate authority to trust",
            "Give sslrootcert, the PEM file of the authority that signed the server's certificate",
        ));
    }
    Ok(roots)
}

/// `verify-ca`: the chain counts, the name does not.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::{CertificateError, Error};
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// `require`: whoever answers is believed, but must hold the key of the certificate shown.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// RFC 5929 `tls-server-end-point`: the certificate's hash, by the hash of its own signature (SHA-256 for the old
/// ones). `None` where the signature names no hash (Ed25519): then the login is not bound, as in libpq.
pub(super) fn end_point(stream: &Negotiated) -> Option<Vec<u8>> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    Some(match signature_hash(certificate)? {
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// Reads `Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OID … } … }`.
fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    let (body, _) = der(certificate, 0x30)?;
    let (_, rest) = der(body, 0x30)?;
    let (algorithm, _) = der(rest, 0x30)?;
    let (oid, _) = der(algorithm, 0x06)?;
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    match oid.strip_prefix(RSA) {
        Some([4 | 5 | 11]) => return Some(Hash::Sha256),
        Some([12]) => return Some(Hash::Sha384),
        Some([13]) => return Some(Hash::Sha512),
        _ => {}
    }
    match oid.strip_prefix(ECDSA) {
        Some([1] | [3, 2]) => Some(Hash::Sha256),
        Some([3, 3]) => Some(Hash::Sha384),
        Some([3, 4]) => Some(Hash::Sha512),
        _ => None,
    }
}

/// The content of the DER element at the front, if it has this tag, and what follows it.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[seen, first], rest) = bytes.split_first_chunk::<2>()?;
    if seen != tag {
        return None;
    }
    if first < 0x80 {
        return rest.split_at_checked(usize::from(first));
    }
    let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
    let length = length.iter().try_fold(0usize, |sum, byte| sum.checked_mul(256)?.checked_add(usize::from(*byte)))?;
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_certificates_signature() {
        let with = |oid: &[u8]| {
            let algorithm = [&[0x30, oid.len() as u8 + 2, 0x06, oid.len() as u8], oid].concat();
            let body = [&[0x30, 0x01, 0x00][..], &algorithm].concat();
            [&[0x30, body.len() as u8][..], &body].concat()
        };
        let rsa = |last| with(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, last]);
        assert_eq!(signature_hash(&rsa(11)), Some(Hash::Sha256));
        assert_eq!(signature_hash(&rsa(13)), Some(Hash::Sha512));
        assert_eq!(signature_hash(&with(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 3, 3])), Some(Hash::Sha384));
        assert_eq!(signature_hash(&with(&[0x2b, 0x65, 0x70])), None);
        assert_eq!(signature_hash(&[0x30, 0x84]), None);
    }
}
