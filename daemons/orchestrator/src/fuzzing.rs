//! The reader of the configuration file, for the fuzz targets.

use hy2_daemon_runtime::configuration_text;
use hy2_master_sdk::front::FrontConfig;

use crate::config::Config;

/// What a file says.
#[derive(Debug)]
pub struct Settings {
    /// The side towards people and programs, of all roles that the file has.
    pub front: FrontConfig,
    /// Where agents are awaited.
    pub agents: Option<String>,
    /// Which of the API and the public port have a certificate.
    pub tls: [bool; 2],
    /// Whether the listeners can do side by side.
    pub listeners: Result<(), String>,
    /// The settings as a log may show them.
    pub printed: String,
    /// The settings as JSON.
    pub json: serde_json::Value,
}

/// Reads the settings of an orchestrator; says what is wrong with them.
///
/// # Errors
///
/// In one line.
pub fn settings(text: &str) -> Result<Settings, String> {
    let config: Config = configuration_text(text)?;
    config.check().map_err(|error| format!("{error:#}"))?;
    Ok(Settings {
        front: config.front(),
        agents: config.agents().map(str::to_owned),
        tls: config.tls().map(|tls| tls.is_some()),
        listeners: config
            .check_listeners()
            .map_err(|error| format!("{error:#}")),
        printed: format!("{config:?}"),
        json: config.to_json(),
    })
}
