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
