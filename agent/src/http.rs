//! `/metrics`, `/healthz` and `/readyz`, for Prometheus and the kubelet.
//!
//! `/healthz` asks the loop, for next to nothing: an answer means that it turns. `/readyz` is 200 once the first full pass is done.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
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

/// Binds the address and serves from then on.
pub async fn serve(address: SocketAddr, inbox: mpsc::Sender<Input>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("listen: cannot bind {address}; another program has it, or the node has no such address. Change `listen` in the boot file")
    })?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(connection(stream, inbox.clone()))),
                Err(error) => {
                    debug!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

async fn connection(stream: TcpStream, inbox: mpsc::Sender<Input>) {
    let service = service_fn(|request| answer(request, inbox.clone()));
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        debug!("http: {error}");
    }
}

async fn answer(request: Request<Incoming>, inbox: mpsc::Sender<Input>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into()));
    }
    let path = request.uri().path();
    if !matches!(path, "/metrics" | "/healthz" | "/readyz") {
        return Ok(text(StatusCode::NOT_FOUND, "there is /metrics, /healthz and /readyz\n".into()));
    }
    let answer = if path == "/metrics" {
        metrics(&inbox).await.map(|metrics| text(StatusCode::OK, metrics))
    } else {
        ask(&inbox, Input::WaitingFor).await.map(|what| match path {
            "/readyz" if !what.is_empty() => text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {what}\n")),
            _ => text(StatusCode::OK, "ok\n".into()),
        })
    };
    let stuck = || text(StatusCode::SERVICE_UNAVAILABLE, "the agent's loop does not answer\n".into());
    Ok(answer.unwrap_or_else(stuck))
}

/// None if the loop gives no answer. What the kernel does not tell is left out.
async fn metrics(inbox: &mpsc::Sender<Input>) -> Option<String> {
    let seen = ask(inbox, Input::Look).await?;
    let names = ask(inbox, Input::Names).await?;
    let conntrack = || Conntrack::open().and_then(|mut conntrack| conntrack.stats());
    let conntrack = tokio::task::spawn_blocking(conntrack).await.ok().and_then(Result::ok);
    let counts = counts::read(names).await.unwrap_or_default();
    Some(metrics::render(&seen, &counts, conntrack.as_ref()))
}

/// The loop's answer; none if it gives none.
pub(crate) async fn ask<T>(
    inbox: &mpsc::Sender<Input>,
    question: impl FnOnce(oneshot::Sender<T>) -> Input,
) -> Option<T> {
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
