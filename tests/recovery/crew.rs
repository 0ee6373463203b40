//! The five processes of one migration: ingest, two transform workers, and two delivers, of which the second is on a machine of
//! its own. Each may be killed, frozen and begun again.

use crate::stand::{SPEC, Stand};
use crossfade_testkit::{
    crossfade::{Crossfade, Finished, Running, binary},
    wait::{GENEROUS, wait_until},
};
use std::{
    fs,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Who works for a migration, by their place in [`Crew::posts`].
pub(crate) const INGEST: usize = 0;
pub(crate) const WORKERS: [usize; 2] = [1, 2];
pub(crate) const DELIVERS: [usize; 2] = [3, 4];

/// Somebody who works, or did.
struct Post {
    role: &'static str,
    there: Crossfade,
    running: Option<Running>,
}

impl Post {
    fn start(&mut self) {
        assert!(self.running.is_none(), "{} runs already", self.role);
        self.running = Some(self.there.spawn(&["run", SPEC, "--quiet", "--role", self.role]));
    }
}

/// Whether it ended because no broker answered when it began.
pub(crate) fn found_nobody(ended: &Finished) -> bool {
    ended.code == Some(1) && ended.stderr.contains("check that the servers of the log run and can be reached")
}

/// All of them.
pub(crate) struct Crew {
    posts: Vec<Post>,
    elsewhere: TempDir,
}

impl Crew {
    /// Begins the migration: what the other machine needs is brought there once it is planned.
    pub(crate) async fn begin(stand: &Stand) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = Crossfade::with_binary(binary(), folder.path());
        elsewhere.write(SPEC, &fs::read_to_string(stand.folder().join(SPEC)).unwrap());
        let here = |role| Post { role, there: stand.crossfade.clone(), running: None };
        let other = Post { role: "deliver", there: elsewhere, running: None };
        let posts = vec![here("ingest"), here("transform"), here("transform"), here("deliver"), other];
        let base = folder.path().join("crossfade-data").join(&stand.name);
        let mut crew = Self { posts, elsewhere: folder };
        crew.start(INGEST);
        let (planned, secret) = (stand.work().join("topics.json"), stand.work().join("secret"));
        crew.until("the log is there", async || planned.exists() && secret.exists()).await;
        fs::create_dir_all(&base).unwrap();
        fs::copy(secret, base.join("secret")).unwrap();
        crew.start_all();
        crew
    }

    fn post(&mut self, who: usize) -> &mut Post {
        &mut self.posts[who]
    }

    /// Starts one that does not run.
    pub(crate) fn start(&mut self, who: usize) {
        self.post(who).start();
    }

    /// Starts all that do not run.
    pub(crate) fn start_all(&mut self) {
        for who in 0..self.posts.len() {
            if self.posts[who].running.is_none() {
                self.start(who);
            }
        }
    }

    /// Ends one by SIGKILL; it must have been at work.
    pub(crate) fn kill(&mut self, who: usize) {
        let post = self.post(who);
        if let Some(running) = post.running.take() {
            let finished = running.kill();
            let expected = finished.code.is_none() || found_nobody(&finished);
            assert!(expected, "{} ended by itself before it was killed\n{finished}", post.role);
        }
    }

    /// Whoever was begun while no broker answered for half a minute has ended, and is begun again, as whoever looks after
    /// processes would; a broker may take longer on a busy machine. Nobody else may have ended.
    fn look_after(&mut self, what: &str) {
        for post in &mut self.posts {
            if post.running.as_mut().is_none_or(Running::is_running) {
                continue;
            }
            if let Some(ended) = post.running.take().map(Running::wait) {
                assert!(found_nobody(&ended), "{} ended before: {what}\n{ended}", post.role);
                post.start();
            }
        }
    }

    /// Ends all of them so, at once.
    pub(crate) fn kill_all(&mut self) {
        (0..self.posts.len()).for_each(|who| self.kill(who));
    }

    /// Stops one where it is, for so long.
    pub(crate) async fn freeze(&mut self, who: usize, lasts: Duration) {
        let Some(running) = &self.post(who).running else { return };
        running.freeze();
        tokio::time::sleep(lasts).await;
        running.thaw();
    }

    /// Waits until `reached`, while all that were started are alive.
    pub(crate) async fn until(&mut self, what: &str, mut reached: impl AsyncFnMut() -> bool) {
        let began = Instant::now();
        while !reached().await {
            let late = began.elapsed() > GENEROUS;
            self.look_after(what);
            assert!(!late, "in vain waited for: {what}\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What all of them have said, for a test that fails.
    fn said(&self) -> String {
        let said = |post: &Post| {
            let stderr = post.running.as_ref().map(Running::stderr).unwrap_or_default();
            format!("--- {} says\n{stderr}\n{}", post.role, post.there.run(&["status", SPEC]))
        };
        self.posts.iter().map(said).collect()
    }

    /// Waits until the two delivers have all partitions among them.
    pub(crate) async fn until_shared(&mut self) {
        let there = self.posts[DELIVERS[0]].there.clone();
        self.until("both delivers to have partitions", async || {
            let said = there.run(&["status", SPEC, "--json"]);
            let status: serde_json::Value = serde_json::from_str(&said.stdout).unwrap_or_default();
            let shares: Vec<usize> = status["delivers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|one| Some(one["partitions"].as_object()?.len()))
                .filter(|share| *share > 0)
                .collect();
            shares.len() == 2 && shares.iter().sum::<usize>() == 8
        })
        .await;
    }

    /// Ends all of them in order; each must drain and say so by its code.
    pub(crate) async fn stop(&mut self) {
        for post in &mut self.posts {
            let Some(running) = post.running.take() else { continue };
            running.terminate();
            let ended = running.wait();
            assert_eq!(ended.code, Some(0), "{}\n{ended}", post.role);
        }
    }

    /// Waits until a deliver has taken what a worker has made.
    pub(crate) async fn until_made(&self) {
        wait_until("what a worker has made to be taken", async || {
            DELIVERS.iter().any(|who| {
                let said = self.posts[*who].there.run(&["status", SPEC, "--json"]);
                let status: serde_json::Value = serde_json::from_str(&said.stdout).unwrap_or_default();
                status["made"].as_u64() > Some(0)
            })
        })
        .await;
    }
}

impl Drop for Crew {
    /// What a failed test leaves is there to be looked at.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.elsewhere.disable_cleanup(true);
            println!("so is that of the other machine: {}", self.elsewhere.path().display());
        }
    }
}
