//! A Redis for tests, from Debian's package `redis-server`.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

/// A server of its own, that tests stop, kill and empty. Ends with this process at the latest.
pub(crate) struct RedisServer {
    port: u16,
    password: String,
    process: Option<Child>,
}

impl RedisServer {
    /// Starts on a free port and waits until it answers.
    pub(crate) async fn start() -> Self {
        for _ in 0..8 {
            let free = TcpListener::bind("127.0.0.1:0").expect("a port");
            let port = free.local_addr().expect("its address").port();
            drop(free);
            let mut server = Self {
                port,
                password: String::new(),
                process: None,
            };
            if server.run().await {
                return server;
            }
        }
        panic!("redis-server does not start: apt-get install redis-server");
    }

    /// Starts it again on the same port, empty.
    pub(crate) async fn resume(&mut self) {
        assert!(self.run().await, "redis-server starts again");
    }

    /// Starts it again with another password, or with none.
    pub(crate) async fn resume_with(&mut self, password: &str) {
        password.clone_into(&mut self.password);
        self.resume().await;
    }

    pub(crate) fn url(&self) -> String {
        match self.password.as_str() {
            "" => format!("redis://127.0.0.1:{}", self.port),
            password => format!("redis://:{password}@127.0.0.1:{}", self.port),
        }
    }

    /// Ends it as a power failure would.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("a process");
        process.kill().expect("killed");
        process.wait().expect("reaped");
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.as_ref().expect("a process").id();
        let status = Command::new("kill")
            .args([&format!("-{name}"), &id.to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success(), "{name}");
    }

    /// Runs a command over a connection of its own.
    pub(crate) async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(self.url()).expect("an address");
        let mut connection = client
            .get_multiplexed_async_connection()
            .await
            .expect("Redis answers");
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command
            .query_async(&mut connection)
            .await
            .expect("an answer")
    }

    async fn run(&mut self) -> bool {
        let spawned = Command::new("redis-server")
            .args(["--port", &self.port.to_string()])
            .args(["--requirepass", &self.password])
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn();
        let Ok(mut process) = spawned else {
            return false;
        };
        // Outlives nobody: not a test that is killed either.
        let watch = format!(
            "while kill -0 {} && kill -0 {1}; do sleep 1; done; kill -9 {1}",
            std::process::id(),
            process.id()
        );
        // In the background of a shell that ends at once, so that there is nobody to wait for.
        let watching = Command::new("bash")
            .args(["-c", &format!("setsid bash -c '{watch}' &")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(watching.expect("a shell runs").success());
        let client = redis::Client::open(self.url()).expect("an address");
        for _ in 0..600 {
            if process.try_wait().expect("a state").is_some() {
                return false;
            }
            if client.get_multiplexed_async_connection().await.is_ok() {
                self.process = Some(process);
                return true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        process.kill().expect("killed");
        process.wait().expect("reaped");
        false
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
