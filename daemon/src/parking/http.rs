//! How buckets are reached. Authorities are the system's and those of `[parking] ca_file`; no proxy is used.

use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt as _;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as Tcp;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use rustls::pki_types::{CertificateDer, pem};
use tokio::time::timeout;

use super::Error;
use crate::config::Parking;
use crate::https;

/// For a connection to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// From the request, with its body (a part of 16 MiB at most), to the answer's head. Slower than half a MiB a second is no store.
const ANSWER: Duration = Duration::from_secs(30);

/// Makes the client.
#[derive(Debug)]
pub(super) struct Connector {
    authorities: Vec<CertificateDer<'static>>,
}

impl Connector {
    /// Reads the file with the authorities, if there is one.
    ///
    /// # Errors
    /// [`Error::CaFile`].
    pub(super) fn open(config: &Parking) -> Result<Self, Error> {
        let Some(path) = &config.ca_file else { return Ok(Self { authorities: Vec::new() }) };
        let failed = |source| Error::CaFile { path: path.clone(), source };
        let authorities = https::certificates(path).map_err(failed)?;
        // A file that says nothing would be a surprise at the first notice.
        if authorities.is_empty() {
            return Err(failed(pem::Error::NoItemsFound));
        }
        Ok(Self { authorities })
    }
}

#[derive(Debug)]
struct Service(Client<HttpsConnector<Tcp>, HttpRequestBody>);

/// No answer came.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {ANSWER:?}")]
struct NoAnswer;

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let mut tcp = Tcp::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let failed = |error| object_store::Error::Generic { store: "TLS", source: Box::new(error) };
        let mut roots = https::system_roots();
        for authority in &self.authorities {
            roots.add(authority.clone()).map_err(failed)?;
        }
        let https = https::connector(tcp, roots, None).map_err(failed)?;
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(https);
        Ok(HttpClient::new(Service(client)))
    }
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = timeout(ANSWER, self.0.request(request)).await;
        let answer = answer.map_err(|_| HttpError::new(HttpErrorKind::Timeout, NoAnswer))?.map_err(|error| {
            let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted };
            HttpError::new(kind, error)
        })?;
        let body = |body: hyper::body::Incoming| {
            HttpResponseBody::new(body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error)))
        };
        Ok(answer.map(body))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use http_body_util::Full;
    use hyper::body::{Bytes, Incoming};
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::TokioIo;
    use object_store::ObjectStoreExt as _;
    use object_store::aws::AmazonS3Builder;
    use rustls::crypto::ring;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject as _;
    use spothop_transfer::certs::{self, Existing};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::migration::chain;
    use crate::parking::store::bucket;

    /// A store with one object under every name, and a certificate for `names` that the authority in `dir` has signed. Ends with what is
    /// returned beside its endpoint.
    async fn store(dir: &Path, address: &str) -> (String, JoinSet<()>) {
        certs::init(dir, Existing::Keep).unwrap();
        certs::issue(dir, "store", &[address.parse().unwrap()], dir, Existing::Keep).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                https::certificates(&dir.join(certs::HOST_CERTIFICATE)).unwrap(),
                PrivateKeyDer::from_pem_file(dir.join(certs::HOST_KEY)).unwrap(),
            );
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://{}", listener.local_addr().unwrap());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // A client that does not believe us hangs up.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = service_fn(async |_: Request<Incoming>| {
                        Response::builder()
                            .header("ETag", "\"1\"")
                            .header("Last-Modified", "Tue, 01 Jan 2030 00:00:00 GMT")
                            .body(Full::new(Bytes::from_static(b"parked")))
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        (endpoint, serving)
    }

    async fn get(endpoint: &str, config: &Parking) -> Result<Bytes, object_store::Error> {
        let builder = AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_region("eu-central-1")
            .with_access_key_id("key")
            .with_secret_access_key("secret");
        let store = bucket(builder, "b", Connector::open(config).unwrap()).unwrap();
        store.get(&"object".into()).await?.bytes().await
    }

    fn believing(path: &Path) -> Parking {
        Parking { ca_file: Some(path.to_owned()), ..Parking::default() }
    }

    #[tokio::test]
    async fn a_store_with_an_authority_of_its_own_is_believed_where_the_file_names_it() {
        let scratch = tempfile::tempdir().unwrap();
        let (own, other) = (scratch.path().join("own"), scratch.path().join("other"));
        let (endpoint, _serving) = store(&own, "127.0.0.1").await;
        assert_eq!(get(&endpoint, &believing(&own.join(certs::CA_CERTIFICATE))).await.unwrap(), "parked");
        certs::init(&other, Existing::Keep).unwrap();
        for config in [Parking::default(), believing(&other.join(certs::CA_CERTIFICATE))] {
            let failure = get(&endpoint, &config).await.unwrap_err();
            assert!(chain(&failure).contains("UnknownIssuer"), "{}", chain(&failure));
        }
    }

    #[tokio::test]
    async fn a_certificate_of_another_name_is_not_believed_whoever_signed_it() {
        let scratch = tempfile::tempdir().unwrap();
        let (endpoint, _serving) = store(scratch.path(), "127.0.0.2").await;
        let failure = get(&endpoint, &believing(&scratch.path().join(certs::CA_CERTIFICATE))).await.unwrap_err();
        assert!(chain(&failure).contains("not valid for name"), "{}", chain(&failure));
    }

    #[test]
    fn a_file_without_authorities_is_told_by_its_name() {
        let scratch = tempfile::tempdir().unwrap();
        let empty = scratch.path().join("empty.pem");
        std::fs::write(&empty, "nothing\n").unwrap();
        for path in [empty, scratch.path().join("missing.pem")] {
            let failure = Connector::open(&believing(&path)).unwrap_err();
            assert!(failure.to_string().contains(&*path.to_string_lossy()), "{failure}");
        }
    }
}
