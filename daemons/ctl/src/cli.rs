//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{commands::*, failure::EXIT_CODES};

/// Manage a fleet of Hysteria 2 nodes through its orchestrator.
#[derive(Debug, Parser)]
#[command(name = "hy2ctl", version, about, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Which profile to use, whatever else the environment says; default: HY2CTL_PROFILE, or "default"
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) profile: Option<String>,

    /// File of profiles; default: hy2/ctl.json under the account's configuration
    #[arg(long, global = true, value_name = "FILE", env = "HY2CTL_PROFILES")]
    pub(crate) profiles: Option<PathBuf>,

    /// Print answers as the API gives them; why not, on standard error, is JSON too
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Do not ask before something is destroyed
    #[arg(short, long, global = true)]
    pub(crate) yes: bool,
}

impl Common {
    /// Returns the name of the profile to use.
    pub(crate) fn profile(&self) -> String {
        let given = self.profile.clone();
        given
            .or_else(|| from_environment("HY2CTL_PROFILE"))
            .unwrap_or_else(|| "default".to_owned())
    }
}

/// Returns a variable of the environment, if it has a value.
pub(crate) fn from_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Open a session, or keep an API token, in a profile
    Login(account::Login),
    /// End the session and forget the profile
    Logout,
    /// Show whose account it is
    Whoami,
    /// Choose a new password of one's own
    Passwd(account::Passwd),
    /// The second factor of one's own account
    #[command(subcommand)]
    Totp(account::Totp),
    /// API tokens, for programs
    #[command(subcommand, visible_alias = "api-token")]
    ApiTokens(tokens::ApiTokens),
    /// Nodes and the tokens with which they enrol
    #[command(subcommand, visible_alias = "node")]
    Nodes(nodes::Nodes),
    /// Regions: where nodes are, and where users are at home
    #[command(subcommand, visible_alias = "region")]
    Regions(regions::Regions),
    /// Users
    #[command(subcommand, visible_alias = "user")]
    Users(users::Users),
    /// Plans
    #[command(subcommand, visible_alias = "plan")]
    Plans(plans::Plans),
    /// Which users are on which nodes
    #[command(subcommand, visible_alias = "assignment")]
    Assignments(assignments::Assignments),
    /// How much went through
    #[command(subcommand)]
    Traffic(traffic::Traffic),
    /// Live connections
    #[command(subcommand, visible_alias = "session")]
    Sessions(sessions::Sessions),
    /// What somebody should look at
    #[command(subcommand, visible_alias = "alert")]
    Alerts(alerts::Alerts),
    /// Who did what
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Fetch an encrypted backup of the whole store
    Backup(backup::Backup),
    /// Restore a backup into an empty store, on the orchestrator's host
    Restore(backup::Restore),
    /// Follow what happens
    Events(events::Events),
    /// Print a completion script
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Print the version of this program and, with a profile, of the API
    Version,
}
