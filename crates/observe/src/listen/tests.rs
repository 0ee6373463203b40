use super::*;
use crate::{Rates, Totals};
use crossfade_control::Migration;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn status() -> Status {
    let mut status = Status::new("shop", 0, &Migration::default(), &Totals::default(), Rates::default());
    status.phase = "dual reading".to_owned();
    status.reason = Some("<script>alert(1)</script>".to_owned());
    status
}

/// One that answers, how often it has made a status, and where.
fn begin() -> (SocketAddr, Arc<AtomicUsize>, tokio::task::JoinHandle<io::Result<()>>) {
    let listening = Listening::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listening.address().unwrap();
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let serving = tokio::spawn(listening.serve(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        status()
    }));
    (address, made, serving)
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is ended with some of the request unread may be reset after the answer.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

#[tokio::test]
async fn it_gives_metrics_the_status_and_a_page_and_nothing_else() {
    let (address, _, _serving) = begin();
    let metrics = get(address, "/metrics").await;
    assert!(metrics.contains("version=0.0.4") && metrics.contains("crossfade_phase{migration=\"shop\""), "{metrics}");
    let found = get(address, "/status").await;
    let (head, body) = found.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("application/json") && head.contains("no-store"), "{head}");
    assert_eq!(serde_json::from_str::<Status>(body).unwrap(), status());
    let page = get(address, "/").await;
    assert!(page.contains("<li class=\"now\">dual reading</li>") && page.contains("<li class=\"past\">verified</li>"));
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script"), "{page}");
    assert!(page.contains("content-security-policy: default-src 'none'"), "{page}");
    for path in ["/stop", "/command/cutover", "/..", "//", "/status/"] {
        assert!(get(address, path).await.starts_with("HTTP/1.1 404"), "{path}");
    }
    for method in ["POST", "DELETE", "PUT", "OPTIONS"] {
        let refused = ask(address, &format!("{method} /status HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")).await;
        assert!(refused.starts_with("HTTP/1.1 405") && refused.contains("allow: GET, HEAD"), "{refused}");
    }
    let head = ask(address, "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && !head.contains("<html"), "{head}");
}

#[tokio::test]
async fn long_and_broken_requests_are_refused_and_cost_no_status() {
    let (address, made, _serving) = begin();
    let long = "x".repeat(4 * HEAD_BYTES_MAX);
    for request in [
        format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x\r\nLong: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1)),
        "no request at all\r\n\r\n".to_owned(),
    ] {
        let answer = ask(address, &request).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(made.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn whoever_says_nothing_is_left_alone_and_the_next_one_is_answered() {
    let (address, _, _serving) = begin();
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HT").await.unwrap();
        silent.push(stream);
    }
    // It waits until one of those before it is given up, and then has its answer.
    assert!(get(address, "/metrics").await.contains("crossfade_phase"));
    let mut nothing = Vec::new();
    let ended = silent.pop().unwrap().read_to_end(&mut nothing).await;
    assert!(ended.is_err() || !nothing.starts_with(b"HTTP/1.1 200"), "a request that never came was answered");
}

#[tokio::test]
async fn many_who_ask_at_once_are_given_one_status() {
    let (address, made, _serving) = begin();
    let asked = Instant::now();
    for _ in 0..20 {
        get(address, "/status").await;
    }
    let most = 1 + asked.elapsed().as_millis() / STATUS_AGE_MAX.as_millis();
    assert!(made.load(Ordering::SeqCst) as u128 <= most, "{} statuses", made.load(Ordering::SeqCst));
}

#[tokio::test]
async fn an_address_is_taken_by_one() {
    let (address, _, serving) = begin();
    assert!(Listening::bind(address).is_err(), "it is taken");
    get(address, "/status").await;
    serving.abort();
    let _ = serving.await;
    assert!(Listening::bind(address).is_ok(), "it is free again");
}
