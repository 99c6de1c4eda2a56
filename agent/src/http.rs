//! `/metrics`, `/healthz` and `/readyz`, for Prometheus and the kubelet: of an agent, and of an operator.
//!
//! `/healthz` asks the loop, for next to nothing: an answer means that it turns. `/readyz` is 200 once the loop waits for
//! nothing that it cannot do without.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tartan_kernel::conntrack::Conntrack;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

use crate::run::Input;
use crate::{counts, metrics};

/// How long the loop may take to answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a loop is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Metrics,
    /// What keeps it from being ready; nothing if nothing does.
    WaitingFor,
}

/// Serves what `answer` says; none is the answer of a loop that gives none.
pub(crate) async fn serve<A>(listener: TcpListener, answer: impl Fn(Asked) -> A + Clone + Send + Sync + 'static)
where
    A: Future<Output = Option<String>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, answer.clone()))),
            Err(error) => {
                debug!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection<A: Future<Output = Option<String>>>(stream: TcpStream, answer: impl Fn(Asked) -> A) {
    let service = service_fn(|request| respond(request, &answer));
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        debug!("http: {error}");
    }
}

async fn respond<A: Future<Output = Option<String>>>(
    request: Request<Incoming>,
    answer: &impl Fn(Asked) -> A,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into()));
    }
    let path = request.uri().path();
    let asked = match path {
        "/metrics" => Asked::Metrics,
        "/healthz" | "/readyz" => Asked::WaitingFor,
        _ => return Ok(text(StatusCode::NOT_FOUND, "there is /metrics, /healthz and /readyz\n".into())),
    };
    Ok(match (path, answer(asked).await) {
        (_, None) => text(StatusCode::SERVICE_UNAVAILABLE, "the loop does not answer\n".into()),
        ("/metrics", Some(metrics)) => text(StatusCode::OK, metrics),
        ("/readyz", Some(what)) if !what.is_empty() => {
            text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {what}\n"))
        }
        _ => text(StatusCode::OK, "ok\n".into()),
    })
}

/// What an agent answers.
pub(crate) async fn of_agent(inbox: mpsc::Sender<Input>, asked: Asked) -> Option<String> {
    if asked == Asked::WaitingFor {
        return ask(&inbox, Input::WaitingFor).await;
    }
    let seen = ask(&inbox, Input::Look).await?;
    let names = ask(&inbox, Input::Names).await?;
    // What the kernel does not tell is left out.
    let conntrack = || Conntrack::open().and_then(|mut conntrack| conntrack.stats());
    let conntrack = tokio::task::spawn_blocking(conntrack).await.ok().and_then(Result::ok);
    let counts = counts::read(names).await.unwrap_or_default();
    Some(metrics::render(&seen, &counts, conntrack.as_ref()))
}

/// A loop's answer; none if it gives none.
pub(crate) async fn ask<Q, T>(inbox: &mpsc::Sender<Q>, question: impl FnOnce(oneshot::Sender<T>) -> Q) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    timeout(PATIENCE, async {
        inbox.send(question(reply)).await.ok()?;
        answer.await.ok()
    })
    .await
    .ok()?
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}
