//! Fuzzes requests to the control socket.

use std::time::{Duration, Instant};

use balancer_api::model::Changed;
use balancer_control::{controller::Controller, io::Change};
use balancer_daemon::untrusted;
use balancer_listeners::call::{Call, ChangeRequest, Request};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};

use super::{
    config::{KEY, is_small},
    runtime,
    state::configured,
};

/// Sends `bytes` to the control socket. A controller receives the requests that result from the bytes.
pub fn api(bytes: &[u8]) {
    let answered = runtime().block_on(ask(bytes));
    assert!(answered.is_empty() || answered.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&answered));
    assert!(!answered.starts_with(b"HTTP/1.1 500"), "{}", String::from_utf8_lossy(&answered));
}

async fn ask(bytes: &[u8]) -> Vec<u8> {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let (calls, inbox) = mpsc::channel(8);
    let client = async {
        let mut answer = Vec::new();
        if far.write_all(bytes).await.is_ok() {
            // The server must close a connection that is idle.
            let ended = timeout(Duration::from_secs(120), far.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "a silent client is kept");
        }
        answer
    };
    let (answer, (), ()) = tokio::join!(client, untrusted::control(near, calls), controller(inbox));
    answer
}

/// Answers requests like the owner task of a controller, but ignores requests that need a data path.
async fn controller(mut inbox: mpsc::Receiver<Call>) {
    let now = Instant::now();
    let mut controller = Controller::new(configured(), KEY);
    let _ = controller.start(now);
    while let Some(call) = inbox.recv().await {
        let Call::Change(Request { change_request: ChangeRequest::Change(change), reply, .. }) = call else { continue };
        if let Change::Reload(config) | Change::Reset(config) = &change
            && !is_small(config)
        {
            continue;
        }
        let changed = controller.change(change, now).map(|(message, _)| Changed::applied(message));
        if let Err(refused) = &changed {
            assert!(!refused.to_string().is_empty());
        }
        let _ = reply.send(changed);
    }
}
