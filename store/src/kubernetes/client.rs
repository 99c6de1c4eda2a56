//! One HTTP/2 connection to the API server, made again when it is needed and gone.
//!
//! Invariants: every request ends, whatever the network does: connecting, waiting for an answer and reading one have
//! limits, and a connection whose other end is silent is given up, as is one that leads to no answer. Only a watch may
//! last, and it is pinged. However many wait for a connection, one attempt answers all of them. Credentials are read again
//! for each connection: certificates and their authorities are replaced while we run.

use std::fmt;
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, ETAG, HeaderValue, IF_NONE_MATCH, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::access::{Access, AccessError, Tls};

const CONNECT: Duration = Duration::from_secs(5);
/// An API server answers a list of thousands within seconds.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// Pings while nothing else is heard, and how long one may go unanswered.
const PING: Duration = Duration::from_secs(5);
const PONG: Duration = Duration::from_secs(5);
/// How long an API server may be silent before that is noticed: a connection without an answer, then none at all.
pub(super) const NOTICED: Duration = Duration::from_secs(PING.as_secs() + PONG.as_secs() + CONNECT.as_secs());
/// Far above a page of a list, but for one of the largest objects that there can be.
pub(super) const LARGEST: usize = 64 << 20;
const JSON: &str = "application/json";
/// Lists of a Node are merged by what names their items; kinds that are not built in know no such thing.
pub(super) const MERGE_ITEMS: &str = "application/strategic-merge-patch+json";
pub(super) const MERGE: &str = "application/merge-patch+json";
const AGENT: &str = concat!("tartan/", env!("CARGO_PKG_VERSION"));

type Body = Full<Bytes>;

/// Why there is no answer to a request, or not the wanted one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It could not be reached, or did not answer.
    Away(String),
    /// It answered with something else than success.
    Status { code: StatusCode, message: String },
    /// It answered with more than anybody should have to take at once.
    TooLong,
}

/// A connection on demand.
pub(super) struct Client {
    /// See [`Access::open`].
    place: String,
    /// As the latest connection found it.
    access: Lock<Arc<Access>>,
    connection: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    sender: Option<SendRequest<Body>>,
    /// Which one that is, in order.
    number: Number,
    /// When the latest attempt failed, and why.
    failed: Option<(Instant, Trouble)>,
}

/// Of a connection; an answer has it of the one it came by.
#[derive(Clone, Copy, Default, PartialEq)]
struct Number(u64);

/// The API server's own word for a failure.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) message: String,
    pub(super) code: u16,
}

// === impl Client ===

impl Client {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// There are no credentials at that place, or they cannot be read.
    pub(super) fn new(place: &str) -> Result<Client, AccessError> {
        let access = Lock::new(Arc::new(Access::open(place)?));
        Ok(Client { place: place.to_owned(), access, connection: Mutex::default() })
    }

    /// Sends, and reads the whole answer.
    pub(super) async fn request(&self, method: Method, path: &str, body: Option<String>) -> Result<Bytes, Trouble> {
        let response = self.send(method, path, JSON, body).await?;
        self.whole(response).await
    }

    /// What is at a path, and what the API server's clock says.
    pub(super) async fn look(&self, path: &str) -> Result<(Bytes, Option<SystemTime>), Trouble> {
        let response = self.send(Method::GET, path, JSON, None).await?;
        let date = response.headers().get(DATE).and_then(|date| tartan_model::http_date(date.to_str().ok()?));
        Ok((self.whole(response).await?, date))
    }

    /// What is at a path in one of these forms, and its tag if it has one; 304 if it is what that tag says.
    pub(super) async fn tagged(
        &self,
        path: &str,
        forms: &'static str,
        known: Option<&str>,
    ) -> Result<(Option<String>, Bytes), Trouble> {
        let mut request = self.compose(Method::GET, path, JSON, None)?;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(forms));
        if let Some(known) = known.and_then(|tag| HeaderValue::from_str(tag).ok()) {
            request.headers_mut().insert(IF_NONE_MATCH, known);
        }
        let response = self.exchange(request).await?;
        let tag = response.headers().get(ETAG).and_then(|tag| Some(tag.to_str().ok()?.to_owned()));
        Ok((tag, self.whole(response).await?))
    }

    /// Changes a part of an object; `how` says what kind of patch it is.
    pub(super) async fn patch(&self, path: &str, how: &'static str, patch: &Value) -> Result<Bytes, Trouble> {
        let response = self.send(Method::PATCH, path, how, Some(patch.to_string())).await?;
        self.whole(response).await
    }

    /// Sends, and gives the answer's body as it comes.
    pub(super) async fn stream(&self, path: &str) -> Result<Incoming, Trouble> {
        self.send(Method::GET, path, JSON, None).await.map(Response::into_body)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content: &'static str,
        body: Option<String>,
    ) -> Result<Response<Incoming>, Trouble> {
        self.exchange(self.compose(method, path, content, body)?).await
    }

    async fn exchange(&self, request: Request<Body>) -> Result<Response<Incoming>, Trouble> {
        let (mut sender, by) = self.sender().await?;
        let answer = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        let mut response = match timeout(ANSWER, answer).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.away(&Causes(&error))),
            Err(_) => {
                self.leave(by).await;
                return Err(self.away(&format_args!("no answer for {} s", ANSWER.as_secs())));
            }
        };
        response.extensions_mut().insert(by);
        let code = response.status();
        if code.is_success() {
            return Ok(response);
        }
        if code == StatusCode::UNAUTHORIZED && self.access().is_shown_when_connecting() {
            self.leave(by).await;
        }
        let said = self.whole(response).await.unwrap_or_default();
        let status: Status = serde_json::from_slice(&said).unwrap_or_default();
        let message = if status.message.is_empty() { code.to_string() } else { status.message };
        Err(Trouble::Status { code, message })
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<Bytes, Trouble> {
        let by = response.extensions().get::<Number>().copied();
        match timeout(ANSWER, Limited::new(response.into_body(), LARGEST).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Trouble::TooLong),
            Ok(Err(error)) => Err(self.away(&error)),
            Err(_) => {
                if let Some(by) = by {
                    self.leave(by).await;
                }
                Err(self.away(&format_args!("half an answer for {} s", ANSWER.as_secs())))
            }
        }
    }

    fn compose(
        &self,
        method: Method,
        path: &str,
        content: &'static str,
        body: Option<String>,
    ) -> Result<Request<Body>, Trouble> {
        let access = self.access();
        let uri = access.url(path);
        let mut request = Request::builder().method(method).uri(uri).header(ACCEPT, JSON).header(USER_AGENT, AGENT);
        if let Some(authorization) = access.authorization().map_err(|error| self.away(&error))? {
            request = request.header(AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, content);
        }
        request.body(Full::from(body.unwrap_or_default())).map_err(|error| self.away(&error))
    }

    async fn sender(&self) -> Result<(SendRequest<Body>, Number), Trouble> {
        let asked = Instant::now();
        let mut connection = self.connection.lock().await;
        if let Some(sender) = connection.sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok((sender.clone(), connection.number));
        }
        if let Some((at, trouble)) = &connection.failed
            && *at > asked
        {
            return Err(trouble.clone());
        }
        let connected = timeout(CONNECT, self.connect()).await;
        let nobody = |_| Err(self.away(&format_args!("no connection within {} s", CONNECT.as_secs())));
        match connected.unwrap_or_else(nobody) {
            Ok(sender) => {
                connection.number.0 += 1;
                connection.sender = Some(sender.clone());
                Ok((sender, connection.number))
            }
            Err(trouble) => {
                connection.failed = Some((Instant::now(), trouble.clone()));
                Err(trouble)
            }
        }
    }

    /// The next request goes by another connection than this one, which leads to nobody who answers, or to one who knows us
    /// by credentials that are over. What is under way on it may still come.
    async fn leave(&self, this: Number) {
        let mut connection = self.connection.lock().await;
        if connection.number == this {
            connection.sender = None;
        }
    }

    async fn connect(&self) -> Result<SendRequest<Body>, Trouble> {
        let access = Arc::new(Access::open(&self.place).map_err(|error| self.away(&error))?);
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = access.clone();
        let Access { host, port, tls, .. } = &*access;
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|error| self.away(&error))?;
        stream.set_nodelay(true).map_err(|error| self.away(&error))?;
        match tls {
            None => self.handshake(stream).await,
            Some(Tls { config, name }) => {
                let stream = TlsConnector::from(config.clone()).connect(name.clone(), stream).await;
                self.handshake(stream.map_err(|error| self.away(&error))?).await
            }
        }
    }

    async fn handshake(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<SendRequest<Body>, Trouble> {
        let mut http2 = Builder::new(TokioExecutor::new());
        http2.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PONG);
        let (sender, connection) =
            http2.handshake(TokioIo::new(stream)).await.map_err(|error| self.away(&Causes(&error)))?;
        // Whoever waits for an answer on it is told of its end.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn access(&self) -> Arc<Access> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn away(&self, why: &dyn fmt::Display) -> Trouble {
        Trouble::Away(format!("{}: {why}", self.access()))
    }
}

// === impl Trouble ===

impl Trouble {
    /// Nobody was there, or nobody who has the time: nothing is said of what we know.
    pub(super) fn says_nothing(&self) -> bool {
        let busy = |code| matches!(code, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        match self {
            Trouble::Away(_) | Trouble::TooLong => true,
            Trouble::Status { code, .. } => busy(*code),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Away(why) => f.write_str(why),
            Trouble::TooLong => write!(f, "an answer of the API server is longer than {} MiB", LARGEST >> 20),
            Trouble::Status { code, message }
                if *code == StatusCode::FORBIDDEN || *code == StatusCode::UNAUTHORIZED =>
            {
                write!(
                    f,
                    "the API server does not let us: {message}; the configuration is people's to change, with kubectl; for all else apply deploy/tartan.yaml again, which has Tartan's rights"
                )
            }
            Trouble::Status { code: StatusCode::NOT_FOUND, message } => {
                write!(f, "the API server does not know this kind ({message}); apply deploy/tartan.yaml")
            }
            Trouble::Status { code, message } => write!(f, "the API server answers {}: {message}", code.as_u16()),
        }
    }
}

/// What the API server has at a path is not what belongs there.
pub(super) fn unreadable(path: &str, error: &serde_json::Error) -> Trouble {
    Trouble::Away(format!("what the API server has at {path} is not what belongs there: {error}"))
}

/// An error with what it comes from: hyper's own say little.
struct Causes<'a>(&'a dyn std::error::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
