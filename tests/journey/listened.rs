//! `run --listen`: what others may look at while a migration runs, and that they can do nothing else.

use crate::{
    desk::{SPEC, assert_same_tables},
    tellers::{Bank, Tellers},
};
use crossfade_testkit::wait::wait_for_blocking;
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

/// An address that nobody has at this moment.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Head and body of an answer; `None` where nobody listens, or the connection was cut.
fn ask(address: SocketAddr, method: &str, path: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.to_owned(), body.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_shows_metrics_status_and_page_on_its_address_and_takes_no_command_there() {
    let Some(bank) = Bank::open("").await else { return };
    // An address that somebody has ends the command before it has made anything.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = bank.desk.expect(2, &["run"], &["--listen", &address]);
    assert!(refused.stderr.contains(&address) && !bank.desk.work().exists(), "{refused}");
    drop(taken);
    for more in [&["--dry-run"][..], &["--role", "transform"]] {
        let refused = bank.desk.expect(2, &["run"], &[&["--listen", address.as_str()][..], more].concat());
        assert!(refused.stderr.contains("--listen with run") && refused.stderr.contains("not built"), "{refused}");
    }

    let address = free();
    let mut run = bank.desk.crossfade.spawn(&["run", SPEC, "--quiet", "--listen", &address.to_string()]);
    bank.desk.wait(&mut run);
    let tellers = Tellers::start(&bank, 3, 0);
    tellers.wait_for_more(100);
    bank.desk.verify();
    let name = &bank.desk.name;
    let (_, metrics) = ask(address, "GET", "/metrics").unwrap();
    let wanted = format!("crossfade_changes_total{{migration=\"{name}\",outcome=\"applied\"}} ");
    assert!(metrics.lines().any(|line| line.strip_prefix(&wanted).is_some_and(|count| count != "0")), "{metrics}");
    for line in [
        format!("crossfade_phase{{migration=\"{name}\",phase=\"verified\"}} 1"),
        format!("crossfade_standing{{migration=\"{name}\",standing=\"running\"}} 1"),
        format!("crossfade_standing{{migration=\"{name}\",standing=\"paused\"}} 0"),
        format!("crossfade_gate_holds{{migration=\"{name}\",gate=\"error_rate\"}} 1"),
        format!("crossfade_changes_unaccounted{{migration=\"{name}\"}} 0"),
        "# TYPE crossfade_changes_total counter".to_owned(),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not among\n{metrics}");
    }
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let value = line.strip_prefix("crossfade_").and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value);
        let is_a_number = value.is_some_and(|value| value.parse::<f64>().is_ok());
        assert!(is_a_number && line.contains(&format!("migration=\"{name}\"")), "{line}");
    }
    let (head, status) = ask(address, "GET", "/status").unwrap();
    assert!(head.contains("application/json"), "{head}");
    let shown: Value = serde_json::from_str(&status).unwrap();
    let told = bank.desk.crossfade.json(&["status", SPEC]);
    for key in ["version", "name", "pid", "phase", "standing", "epoch", "gates"] {
        assert_eq!(shown[key], told[key], "{key}");
    }
    assert_eq!(shown["switch"]["verified_at"], told["switch"]["verified_at"]);
    assert!(shown["switch"]["verified_at"].is_string() && shown["phase"] == "verified", "{shown}");
    let tables = |status: &Value| -> Vec<Value> {
        status["tables"].as_array().unwrap().iter().map(|table| table["table"].clone()).collect()
    };
    assert_eq!((tables(&shown), tables(&shown).len()), (tables(&told), 3));
    let (head, page) = ask(address, "GET", "/").unwrap();
    assert!(head.contains("text/html") && head.contains("content-security-policy: default-src 'none'"), "{head}");
    let title = format!("<title>{name}: verified</title>");
    for word in [
        title.as_str(),
        "<p class=\"verdict good\">verified, running</p>",
        "<li class=\"now\">verified</li>",
        "public.movements",
        "the old side, epoch",
        "<td>error_rate</td><td class=\"good\">holds</td>",
    ] {
        assert!(page.contains(word), "{word} is not on the page\n{page}");
    }
    // What is in a row (each note of a teller begins with its name), and how the databases are reached.
    for text in [&metrics, &status, &page] {
        assert!(!text.contains("early") && !text.contains("postgres://") && !text.contains("password"), "{text}");
    }

    // It can be looked at, and nothing more.
    for (method, path) in
        [("POST", "/pause"), ("POST", "/stop"), ("POST", "/command/cutover"), ("PUT", "/status"), ("DELETE", "/")]
    {
        let (head, body) = ask(address, method, path).unwrap();
        assert!(head.starts_with("HTTP/1.1 405") && head.contains("allow: GET, HEAD"), "{method} {path}: {head}");
        assert_eq!(body, "this address is only looked at: GET\n");
    }
    for path in ["/stop", "/command/cutover", "/status/", "/journal", "/../status", "//"] {
        let (head, body) = ask(address, "GET", path).unwrap();
        assert!(head.starts_with("HTTP/1.1 404"), "{path}: {head}");
        assert_eq!(body, "there is /, /status and /metrics\n");
    }
    let (head, body) = ask(address, "HEAD", "/metrics").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && body.is_empty(), "{head}\n{body}");
    let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    tellers.wait_for_more(50);
    bank.desk.wait(&mut run);
    wait_for_blocking("an answer in spite of those who say nothing", || ask(address, "GET", "/metrics"));
    drop(silent);
    tellers.stop();
    bank.desk.wait(&mut run);
    assert_eq!(bank.desk.crossfade.json(&["status", SPEC])["standing"], "running");
    bank.desk.stop(run);
    assert!(ask(address, "GET", "/status").is_none(), "nobody is there any more");
    assert_same_tables(&bank.old, &bank.new, &["accounts", "movements", "notes"]).await;
}
