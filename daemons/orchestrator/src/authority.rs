//! `ca`: the steps of an exchange of the private authority, and what it issues by hand.

use std::{io::Write, path::Path};

use anyhow::Context;
use hy2_daemon_runtime::NewFile;

use crate::{cli::Ca, config::Config, say};

/// Does one step of an exchange of the authority, or issues a certificate, beside the orchestrator that runs.
pub(crate) async fn exchange(config: &Config, step: &Ca) -> anyhow::Result<()> {
    if let Ca::IssueOperator { name, days, out } = step {
        return issue_operator(config, name, *days, out).await;
    }
    let master = config.master().start().await?;
    let done = match step {
        Ca::Show | Ca::IssueOperator { .. } => Ok(()),
        Ca::Prepare => master.prepare_authority().await.map(drop),
        Ca::Activate { force } => master.activate_authority(*force).await.map(drop),
        Ca::Retire { force } => master.retire_authorities(*force).await,
    };
    let authorities = master.authorities().await;
    let outdated = match step {
        Ca::Activate { .. } => master.outdated_enrolment_tokens().await,
        _ => Ok(Vec::new()),
    };
    master.shutdown().await;
    done?;
    for authority in authorities? {
        say(&format!(
            "{:<8} {} until {}",
            authority.state, authority.pin, authority.not_after
        ))?;
    }
    let outdated = outdated?;
    if !outdated.is_empty() {
        say(&format!(
            "These enrolment tokens go with the pin of the authority before and do not work any more; make new ones: {}",
            outdated.join(", ")
        ))?;
    }
    Ok(())
}

async fn issue_operator(config: &Config, name: &str, days: u32, out: &Path) -> anyhow::Result<()> {
    let shown = out.display();
    let making = || format!("cannot make {shown}");
    let file = match out.as_os_str().as_encoded_bytes() {
        b"-" => None,
        _ => Some(NewFile::create(out).with_context(making)?),
    };
    let master = config.master().start().await?;
    let issued = master.issue_operator(name, days).await;
    master.shutdown().await;
    let issued = issued?;
    let Some(mut file) = file else {
        return say(issued.pem.trim_end());
    };
    file.file()
        .write_all(issued.pem.as_bytes())
        .with_context(making)?;
    file.keep().with_context(making)?;
    say(&format!("{shown}: valid until {}", issued.not_after))
}
