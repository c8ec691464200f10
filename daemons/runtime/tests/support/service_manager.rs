//! The service manager's end of `Type=notify`: a socket that a daemon reports to.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon may take for what is expected of it on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a daemon as systemd would, with a watchdog of half a second, and checks that it says
/// that it is ready, then that it lives, time and again, then that it stops, and that it ends well.
pub(crate) fn check(mut daemon: Command, folder: &std::path::Path) {
    let path = folder.join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a deadline is set");
    let process = daemon
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "500000")
        .env_remove("WATCHDOG_PID")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the daemon starts");
    let mut process = Ended(process);

    assert_eq!(receive(&socket), "READY=1");
    for _ in 0..3 {
        assert_eq!(receive(&socket), "WATCHDOG=1");
    }
    let id = process.0.id().to_string();
    let told = Command::new("kill").args(["-TERM", &id]).status();
    assert!(told.expect("kill runs").success());
    let stopping = (0..1_000)
        .map(|_| receive(&socket))
        .find(|state| state != "WATCHDOG=1");
    assert_eq!(stopping.as_deref(), Some("STOPPING=1"));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = process.0.try_wait().expect("a state") {
            break status;
        }
        assert!(Instant::now() < deadline, "the daemon does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
    // A watchdog that goes on while it stops would keep a hung daemon alive.
    socket.set_nonblocking(true).expect("set");
    assert!(socket.recv(&mut [0; 64]).is_err(), "more after STOPPING=1");
}

fn receive(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let len = socket.recv(&mut buffer).expect("a report in time");
    String::from_utf8_lossy(&buffer[..len]).trim().to_owned()
}

/// A process that does not outlive the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
