//! How to reach an API server, and as whom: from inside a pod, or from a kubeconfig.
//!
//! Invariant: no secret is part of an error or of anything printed. Tokens of pods are replaced while we run, so they
//! are read again for each request, and all else for each connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;

/// Where a pod finds its credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why there is no way to an API server. Made for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AccessError(String);

/// How to reach it.
pub(super) struct Access {
    pub(super) host: String,
    pub(super) port: u16,
    /// What comes before the API server's own paths, as behind a proxy for several clusters; without a slash at its end.
    prefix: String,
    /// None: in clear, to a proxy beside us.
    pub(super) tls: Option<Tls>,
    token: Token,
}

pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    /// What its certificate must be for.
    pub(super) name: ServerName<'static>,
}

enum Token {
    None,
    Fixed(String),
    File(PathBuf),
}

/// A kubeconfig, trimmed to what we can use.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: String,
    clusters: Vec<Named<Cluster>>,
    contexts: Vec<Named<Context>>,
    users: Vec<Named<User>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "context", alias = "user")]
    value: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    tls_server_name: Option<String>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
}

/// Who we are, by certificate.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

// === impl Access ===

impl Access {
    /// See [`super::KubernetesStore::open`].
    pub(super) fn open(place: &str) -> Result<Access, AccessError> {
        if place.is_empty() || place.contains("://") {
            let server = if place.is_empty() { server_of_this_pod()? } else { place.to_owned() };
            return Access::of_this_pod(&server, Path::new(SERVICE_ACCOUNT));
        }
        Access::of_kubeconfig(Path::new(place))
    }

    fn of_this_pod(server: &str, account: &Path) -> Result<Access, AccessError> {
        if !server.starts_with("https://") {
            return Access::to(server, None, None, None, Token::None);
        }
        let authority = read(&account.join("ca.crt"))?;
        Access::to(server, None, Some(&authority), None, Token::File(account.join("token")))
    }

    fn of_kubeconfig(path: &Path) -> Result<Access, AccessError> {
        let wrong = |what: &dyn fmt::Display| AccessError(format!("kubeconfig {}: {what}", path.display()));
        // Not the parser's own sentence, which quotes what it does not take: that may be a token.
        let config: Kubeconfig = serde_yaml_ng::from_slice(&read(path)?).map_err(|error| match error.location() {
            Some(at) => wrong(&format!("not a kubeconfig, at line {} column {}", at.line(), at.column())),
            None => wrong(&"not a kubeconfig"),
        })?;
        let context = named(config.contexts, &config.current_context).map_err(|error| wrong(&error))?;
        let cluster = named(config.clusters, &context.cluster).map_err(|error| wrong(&error))?;
        let user = named(config.users, &context.user).map_err(|error| wrong(&error))?;

        let beside = path.parent().unwrap_or(Path::new("/"));
        let content = |data: Option<String>, file: Option<PathBuf>| match (data, file) {
            (Some(data), _) => BASE64_STANDARD.decode(data).map(Some).map_err(|_| wrong(&"data that is not base64")),
            (None, Some(file)) => read(&beside.join(file)).map(Some),
            (None, None) => Ok(None),
        };
        let authority = content(cluster.certificate_authority_data, cluster.certificate_authority)?;
        let certificate = content(user.client_certificate_data, user.client_certificate)?;
        let key = content(user.client_key_data, user.client_key)?;
        let identity = certificate.zip(key).map(|(cert, key)| identity(&cert, &key)).transpose();
        let token = match (user.token, user.token_file) {
            (_, Some(file)) => Token::File(beside.join(file)),
            (Some(token), None) => Token::Fixed(token),
            (None, None) => Token::None,
        };
        let identity = identity.map_err(|error| wrong(&error))?;
        Access::to(&cluster.server, cluster.tls_server_name, authority.as_deref(), identity, token)
            .map_err(|error| wrong(&error))
    }

    fn to(
        server: &str,
        tls_name: Option<String>,
        authority: Option<&[u8]>,
        identity: Option<Identity>,
        token: Token,
    ) -> Result<Access, AccessError> {
        let wrong = |what: &str| AccessError(format!("API server '{server}': {what}"));
        let uri: Uri = server.parse().map_err(|_| wrong("not an address; write https://HOST:PORT"))?;
        let host = uri.host().ok_or_else(|| wrong("no host in it; write https://HOST:PORT"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let (tls, port) = match uri.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => {
                let name = tls_name.unwrap_or_else(|| host.clone());
                let name = ServerName::try_from(name).map_err(|_| wrong("no certificate can be for that name"))?;
                let authority = authority.ok_or_else(|| wrong("no certificate authority to know it by"))?;
                (Some(Tls { config: Arc::new(client_config(authority, identity)?), name }), 443)
            }
            _ => return Err(wrong("neither http nor https")),
        };
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Ok(Access { host, port: uri.port_u16().unwrap_or(port), prefix, tls, token })
    }

    /// Of a path of the API server's, with its query.
    pub(super) fn url(&self, path: &str) -> String {
        let Access { host, port, prefix, tls, .. } = self;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        format!("{scheme}://{host}:{port}{prefix}{path}")
    }

    /// Whether who we are is said once a connection, by a certificate.
    pub(super) fn is_shown_when_connecting(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.config.client_auth_cert_resolver.has_certs())
    }

    /// The value of an Authorization header, if one is needed.
    pub(super) fn authorization(&self) -> Result<Option<String>, AccessError> {
        let token = match &self.token {
            Token::None => return Ok(None),
            Token::Fixed(token) => token.clone(),
            Token::File(file) => String::from_utf8_lossy(&read(file)?).into_owned(),
        };
        Ok(Some(format!("Bearer {}", token.trim())))
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "API server {} port {}", self.host, self.port)
    }
}

fn server_of_this_pod() -> Result<String, AccessError> {
    let variable = |name: &str| {
        std::env::var(name).map_err(|_| {
            AccessError(format!(
                "{name} is not set, so this is no pod; write `store: kubernetes:/path/of/kubeconfig` in the boot file"
            ))
        })
    };
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    Ok(if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") })
}

fn client_config(authority: &[u8], identity: Option<Identity>) -> Result<ClientConfig, AccessError> {
    let wrong = |what: &str, why: &dyn fmt::Display| AccessError(format!("{what}: {why}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority) {
        let certificate = certificate.map_err(|error| wrong("the certificate authority is not PEM", &error))?;
        roots.add(certificate).map_err(|error| wrong("the certificate authority cannot be used", &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong("TLS", &error))?.with_root_certificates(roots);
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| wrong("our key", &error))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn identity(certificate: &[u8], key: &[u8]) -> Result<Identity, AccessError> {
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| AccessError(format!("the client certificate is not PEM: {error}")))?;
    // The error might quote the key.
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| AccessError("the client key is not PEM".into()))?;
    Ok((chain, key))
}

fn named<T>(list: Vec<Named<T>>, name: &str) -> Result<T, AccessError> {
    let found = list.into_iter().find(|named| named.name == name);
    found.map(|named| named.value).ok_or_else(|| AccessError(format!("it names '{name}' and does not have it")))
}

fn read(path: &Path) -> Result<Vec<u8>, AccessError> {
    std::fs::read(path).map_err(|error| AccessError(format!("reading {}: {error}", path.display())))
}
