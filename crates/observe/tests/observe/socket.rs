//! The control socket, asked as the commands ask it.

use crossfade_control::Migration;
use crossfade_observe::{
    Rates, Status, Totals,
    socket::{Control, ControlSocket, Refused, SocketError, request, request_text},
};
use hyper::Method;
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, Notify, oneshot},
    task::JoinHandle,
};

#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<String>>,
    stop: Notify,
    waiting: Notify,
    abandoned: Arc<Notify>,
}

struct OnDrop(Arc<Notify>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Fake {
    async fn note(&self, what: String) {
        self.asked.lock().await.push(what);
    }
}

impl Control for Fake {
    async fn status(&self) -> Status {
        Status::new("shop", 0, &Migration::default(), &Totals::default(), Rates::default()).run_by(9)
    }

    async fn pause(&self, who: String, reason: String) -> Result<(), Refused> {
        self.note(format!("pause {who} {reason}")).await;
        Ok(())
    }

    async fn resume(&self, who: String) -> Result<(), Refused> {
        self.note(format!("resume {who}")).await;
        Err(Refused::new(5, "the migration is lost: begin anew"))
    }

    async fn stop(&self) -> Result<(), Refused> {
        self.stop.notify_one();
        Ok(())
    }

    async fn checkpoint(&self, who: String, name: String) -> Result<Value, Refused> {
        Ok(json!({ "name": name, "cut": "17", "who": who }))
    }

    async fn wait(&self, what: String) -> Result<Value, Refused> {
        let _gone = OnDrop(self.abandoned.clone());
        match what.as_str() {
            "caught-up" => Ok(json!({ "held": 2 })),
            "never" => {
                self.waiting.notify_one();
                std::future::pending().await
            }
            other => Err(Refused::new(2, format!("cannot wait for `{other}`"))),
        }
    }

    async fn command(&self, verb: String, body: Value) -> Result<Value, Refused> {
        Ok(json!({ "verb": verb, "body": body }))
    }
}

struct Served {
    fake: Arc<Fake>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

fn serve(path: &Path) -> Served {
    let fake = Arc::new(Fake::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let socket = ControlSocket::bind(path).unwrap();
    let task = tokio::spawn(socket.serve(fake.clone(), async {
        let _ = stopped.await;
    }));
    Served { fake, stop, task }
}

#[tokio::test]
async fn every_route_is_answered_and_refusals_carry_their_exit_code() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("control.sock");
    let served = serve(&path);
    let post = |route: &'static str, body: Value| {
        let path = path.clone();
        async move { request(&path, Method::POST, route, Some(&body)).await }
    };
    let status: Status = serde_json::from_value(request(&path, Method::GET, "/status", None).await.unwrap()).unwrap();
    assert_eq!((status.name.as_str(), status.pid), ("shop", Some(9)));
    let metrics = request_text(&path, Method::GET, "/metrics", None).await.unwrap();
    assert!(metrics.contains("crossfade_phase{migration=\"shop\",phase=\"draft\"} 1"), "{metrics}");
    post("/pause", json!({ "who": "ann", "reason": "lunch" })).await.unwrap();
    let refused = post("/resume", json!({ "who": "ann" })).await.unwrap_err();
    assert_eq!((refused.exit(), refused.to_string().as_str()), (5, "the migration is lost: begin anew"));
    assert_eq!(*served.fake.asked.lock().await, ["pause ann lunch", "resume ann"]);
    let place = post("/checkpoint/before-import", json!({ "who": "ann" })).await.unwrap();
    assert_eq!(place, json!({ "name": "before-import", "cut": "17", "who": "ann" }));
    assert_eq!(post("/wait/caught-up", json!({})).await.unwrap(), json!({ "held": 2 }));
    assert_eq!(post("/wait/rain", json!({})).await.unwrap_err().exit(), 2);
    let answer = post("/command/quarantine-retry", json!({ "ids": [1, 2] })).await.unwrap();
    assert_eq!(answer, json!({ "verb": "quarantine-retry", "body": { "ids": [1, 2] } }));
    for (route, body, word) in [
        ("/pause", json!({ "who": 7 }), "`who` must be a text"),
        ("/resume", json!({ "who": false }), "`who` must be a text"),
        ("/pause", json!([1]), "no JSON object"),
        ("/pause", json!({ "reason": "x".repeat(2 << 20) }), "too long"),
        ("/nothing", json!({}), "no such route"),
    ] {
        let refused = post(route, body).await.unwrap_err();
        assert_eq!(refused.exit(), 2);
        assert!(refused.to_string().contains(word), "{refused}");
    }
    served.stop.send(()).unwrap();
    served.task.await.unwrap().unwrap();
    assert!(!path.exists(), "the socket goes with its process");
}

#[tokio::test]
async fn where_nobody_listens_nobody_runs() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("control.sock");
    let ask = || request(&path, Method::GET, "/status", None);
    assert!(matches!(ask().await, Err(SocketError::NotRunning)));
    // What a killed process leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(ask().await, Err(SocketError::NotRunning)));
    let served = serve(&path);
    assert!(ask().await.is_ok(), "the next owner takes the place");
    served.stop.send(()).unwrap();
    served.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_folder_with_a_long_path_has_a_socket_too() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("x".repeat(120));
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("control.sock");
    let served = serve(&path);
    assert!(request(&path, Method::GET, "/status", None).await.is_ok());
    served.stop.send(()).unwrap();
    served.task.await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_question_that_is_given_up_is_given_up_on_the_other_side() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("control.sock");
    let served = serve(&path);
    let asking = tokio::spawn({
        let path = path.clone();
        async move { request(&path, Method::POST, "/wait/never", None).await }
    });
    served.fake.waiting.notified().await;
    asking.abort();
    tokio::time::timeout(Duration::from_secs(10), served.fake.abandoned.notified()).await.unwrap();
}

#[tokio::test]
async fn stopping_refuses_those_who_wait_and_ends_at_once() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("control.sock");
    let served = serve(&path);
    let asking = tokio::spawn({
        let path = path.clone();
        async move { request(&path, Method::POST, "/wait/never", None).await }
    });
    served.fake.waiting.notified().await;
    let began = std::time::Instant::now();
    served.stop.send(()).unwrap();
    let refused = asking.await.unwrap().unwrap_err();
    assert_eq!(refused.to_string(), "the process was stopped while you waited");
    served.task.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "stopping took {:?}", began.elapsed());
}

#[tokio::test]
async fn the_answer_to_stop_arrives_before_the_end() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("control.sock");
    let fake = Arc::new(Fake::default());
    let socket = ControlSocket::bind(&path).unwrap();
    let task = tokio::spawn(socket.serve(fake.clone(), {
        let fake = fake.clone();
        async move { fake.stop.notified().await }
    }));
    assert_eq!(request(&path, Method::POST, "/stop", None).await.unwrap(), json!({}));
    task.await.unwrap().unwrap();
}
