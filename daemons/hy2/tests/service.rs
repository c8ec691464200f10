//! `hy2 server` under a service manager.

#[path = "../../runtime/tests/support/service_manager.rs"]
mod service_manager;

use std::process::Command;

#[test]
fn the_service_manager_hears_that_the_server_is_ready_lives_and_stops() {
    let folder = tempfile::tempdir().expect("a folder");
    let hy2 = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hy2"));
        command.current_dir(folder.path());
        command
    };
    let made = hy2().args(["cert", "--host", "localhost"]).output();
    assert!(made.expect("runs").status.success());
    let text = "listen: 127.0.0.1:0\ntls: {cert: cert.pem, key: key.pem}\n\
                auth: {type: password, password: right}\n";
    std::fs::write(folder.path().join("server.yaml"), text).expect("written");
    let mut server = hy2();
    server.args(["server", "-c", "server.yaml"]);
    service_manager::check(server, folder.path());
}
