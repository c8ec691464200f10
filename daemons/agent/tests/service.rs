//! The agent under a service manager.

#[path = "../../runtime/tests/support/service_manager.rs"]
mod service_manager;

use std::process::Command;

#[test]
fn the_service_manager_hears_that_the_agent_is_ready_lives_and_stops() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agent.yaml");
    // Nobody listens there: an agent is ready without its master.
    let text = format!(
        "dataDir: {}\nmasters: ['127.0.0.1:9']\n",
        folder.path().join("data").display()
    );
    std::fs::write(&file, text).expect("written");
    let mut agent = Command::new(env!("CARGO_BIN_EXE_hy2-agent"));
    agent.arg("run").arg("-c").arg(&file);
    service_manager::check(agent, folder.path());
}
