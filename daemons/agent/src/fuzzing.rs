//! The reader of the configuration file, for the fuzz targets.

use hy2_agent_sdk::AgentConfig;
use hy2_daemon_runtime::configuration_text;

use crate::config::Config;

/// Reads the settings of an agent; says what is wrong with them.
///
/// # Errors
///
/// In one line.
pub fn settings(text: &str) -> Result<AgentConfig, String> {
    let config: Config = configuration_text(text)?;
    config.check()?;
    Ok(config.agent())
}
