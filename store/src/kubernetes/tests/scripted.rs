//! An API server that gives the answers of a list, one a request, and never answers after that.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// What one request gets.
pub(super) enum Answer {
    With(u16, String),
    /// With an ETag.
    Tagged(u16, &'static str),
    /// The request is broken off.
    None,
    Never,
    /// The answer begins, and does not end.
    Half,
}

/// An answer's text, or as much of it as ever comes.
struct Text {
    text: Bytes,
    ends: bool,
}

impl Text {
    fn whole(text: String) -> Text {
        Text { text: text.into(), ends: true }
    }
}

impl Body for Text {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match (self.text.is_empty(), self.ends) {
            (false, _) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.text))))),
            (true, true) => Poll::Ready(None),
            (true, false) => Poll::Pending,
        }
    }
}

impl Answer {
    pub(super) fn with(code: u16, body: String) -> Answer {
        Answer::With(code, body)
    }
}

pub(super) struct Scripted {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

struct Script {
    answers: VecDeque<Answer>,
    asked: Vec<Asked>,
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    /// If-None-Match.
    pub(super) known: String,
    pub(super) body: String,
    /// The connection it came by: the how manieth.
    pub(super) connection: usize,
}

impl Scripted {
    pub(super) async fn start(answers: Vec<Answer>) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script { answers: answers.into(), asked: Vec::new() }));
        tokio::spawn(serve(listener, script.clone()));
        Scripted { address, script }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until every answer was asked for.
    pub(super) async fn all_asked(&self) {
        let asked = async {
            while !self.script.lock().unwrap().answers.is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), asked).await;
        assert!(waited.is_ok(), "not all was asked for, only {:#?}", self.asked());
    }

    /// Paths of the requests so far.
    pub(super) fn asked(&self) -> Vec<String> {
        self.requests().into_iter().map(|asked| asked.path).collect()
    }

    /// The requests so far.
    pub(super) fn requests(&self) -> Vec<Asked> {
        self.script.lock().unwrap().asked.clone()
    }
}

async fn serve(listener: TcpListener, script: Arc<Mutex<Script>>) {
    for connection in 0.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        let script = script.clone();
        let answer = service_fn(move |request| answer(request, connection, script.clone()));
        tokio::spawn(Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer));
    }
}

async fn answer(
    request: Request<Incoming>,
    connection: usize,
    script: Arc<Mutex<Script>>,
) -> io::Result<Response<Text>> {
    let (method, path) = (request.method().clone(), request.uri().path_and_query().unwrap().to_string());
    let known = request.headers().get("if-none-match").map(|tag| tag.to_str().unwrap().to_owned()).unwrap_or_default();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    let next = {
        let mut script = script.lock().unwrap();
        script.asked.push(Asked { method, path, known, body, connection });
        script.answers.pop_front()
    };
    match next {
        Some(Answer::With(code, body)) => {
            Ok(Response::builder().status(code).body(Text::whole(body)).expect("a code and a text"))
        }
        Some(Answer::Tagged(code, tag)) => {
            let nothing = Text::whole(String::new());
            Ok(Response::builder().status(code).header("etag", tag).body(nothing).expect("a code and a tag"))
        }
        Some(Answer::Half) => Ok(Response::new(Text { text: "{".into(), ends: false })),
        Some(Answer::None) => Err(io::ErrorKind::ConnectionReset.into()),
        Some(Answer::Never) | None => pending().await,
    }
}
