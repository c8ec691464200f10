//! `ca`: the steps of an exchange of the private authority.

use crate::{cli::Ca, config::Config, say};

/// Does one step of an exchange of the authority, beside the orchestrator that runs.
pub(crate) async fn exchange(config: &Config, step: &Ca) -> anyhow::Result<()> {
    let master = config.master().start().await?;
    let done = match step {
        Ca::Show => Ok(()),
        Ca::Prepare => master.prepare_authority().await.map(drop),
        Ca::Activate { force } => master.activate_authority(*force).await.map(drop),
        Ca::Retire { force } => master.retire_authorities(*force).await,
    };
    let authorities = master.authorities().await;
    master.shutdown().await;
    done?;
    for authority in authorities? {
        say(&format!(
            "{:<8} {} until {}",
            authority.state, authority.pin, authority.not_after
        ))?;
    }
    Ok(())
}
