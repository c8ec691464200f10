//! The orchestrator under a service manager.

#[path = "../../runtime/tests/support/service_manager.rs"]
mod service_manager;

use std::process::Command;

#[test]
fn the_service_manager_hears_that_the_orchestrator_is_ready_lives_and_stops() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("orchestrator.yaml");
    let at = folder.path().display();
    // Nobody listens where Redis should be: an orchestrator starts without it.
    let text = format!(
        "database: sqlite:{at}/fleet.db\nkeyFile: {at}/master.key\nredis: redis://127.0.0.1:9\n\
         agents: {{listen: '127.0.0.1:0'}}\napi: {{listen: '127.0.0.1:0'}}\n\
         public: {{listen: '127.0.0.1:0', url: 'http://127.0.0.1/'}}\n"
    );
    std::fs::write(&file, text).expect("written");
    let mut orchestrator = Command::new(env!("CARGO_BIN_EXE_hy2-orchestrator"));
    orchestrator.arg("run").arg("-c").arg(&file);
    service_manager::check(orchestrator, folder.path());
}

#[test]
fn a_database_whose_key_is_missing_gets_no_new_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, key) = (
        folder.path().join("orchestrator.yaml"),
        folder.path().join("master.key"),
    );
    let text = format!(
        "database: sqlite:{}/fleet.db\nkeyFile: {}\npublic: {{url: 'http://127.0.0.1/'}}\n",
        folder.path().display(),
        key.display()
    );
    std::fs::write(&file, text).expect("written");
    let migrate = || {
        let mut orchestrator = Command::new(env!("CARGO_BIN_EXE_hy2-orchestrator"));
        orchestrator
            .arg("migrate")
            .arg("-c")
            .arg(&file)
            .output()
            .expect("runs")
    };
    assert!(migrate().status.success());
    let kept = std::fs::read(&key).expect("made at the first run");
    std::fs::remove_file(&key).expect("removed");
    let refused = migrate();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && !key.exists(), "{said}");
    assert!(said.contains("master.key is missing"), "{said}");
    // A file as the first run makes it: readable by its owner only.
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    std::io::Write::write_all(&mut options.open(&key).expect("made"), &kept).expect("written");
    assert!(migrate().status.success());
}
