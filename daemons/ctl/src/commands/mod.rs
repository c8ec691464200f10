//! One file per kind of thing.

pub(crate) mod account;
pub(crate) mod alerts;
pub(crate) mod assignments;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod events;
pub(crate) mod nodes;
pub(crate) mod plans;
pub(crate) mod regions;
pub(crate) mod sessions;
pub(crate) mod tokens;
pub(crate) mod traffic;
pub(crate) mod users;

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use serde_json::{Map, Value, json};

use crate::{
    cli::{Cli, Command, Common, from_environment},
    client::{Client, Keeper},
    failure::Failure,
    output::{Column, Output},
    profile::{Profile, Profiles},
};

/// Carries out a command line.
pub(crate) async fn run(cli: Cli, output: &Output) -> Result<ExitCode, Failure> {
    let common = &cli.common;
    match cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hy2ctl", &mut script);
            output.line(String::from_utf8_lossy(&script).trim_end())?;
        }
        Command::Restore(restore) => restore.run(common, output)?,
        Command::Version => version(common, output).await?,
        Command::Login(login) => login.run(common, output).await?,
        Command::Logout => account::log_out(common, output).await?,
        Command::Whoami => output.record(&client(common)?.get("/auth/me", &[]).await?)?,
        Command::Passwd(passwd) => passwd.run(common, output).await?,
        Command::Totp(totp) => totp.run(common, &client(common)?, output).await?,
        Command::ApiTokens(tokens) => tokens.run(common, &client(common)?, output).await?,
        Command::Nodes(nodes) => nodes.run(common, &client(common)?, output).await?,
        Command::Regions(regions) => regions.run(common, &client(common)?, output).await?,
        Command::Users(users) => users.run(common, &client(common)?, output).await?,
        Command::Plans(plans) => plans.run(common, &client(common)?, output).await?,
        Command::Assignments(these) => these.run(common, &client(common)?, output).await?,
        Command::Traffic(traffic) => traffic.run(&client(common)?, output).await?,
        Command::Sessions(sessions) => sessions.run(common, &client(common)?, output).await?,
        Command::Alerts(alerts) => alerts.run(&client(common)?, output).await?,
        Command::Audit(audit) => audit.run(&client(common)?, output).await?,
        Command::Backup(backup) => backup.run(&client(common)?, output).await?,
        Command::Events(events) => events.run(&client(common)?, output).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the way to the orchestrator: the profile that `--profile` names, or else `HY2CTL_URL` and `HY2CTL_TOKEN`, or
/// else the profile.
fn client(common: &Common) -> Result<Client, Failure> {
    let [url, token] = ["HY2CTL_URL", "HY2CTL_TOKEN"].map(|name| match common.profile {
        Some(_) => None,
        None => from_environment(name),
    });
    if token.is_some() && url.is_none() {
        let detail = "HY2CTL_TOKEN is set and HY2CTL_URL is not: set both, or name a --profile";
        return Err(Failure::Usage(detail.to_owned()));
    }
    if let (Some(url), Some(token)) = (&url, token) {
        let ca = from_environment("HY2CTL_CA")
            .map(|file| account::read_ca(file.as_ref()))
            .transpose()?;
        let profile = Profile {
            url: url.clone(),
            ca,
            pin: from_environment("HY2CTL_CA_PIN"),
            api_token: Some(token),
            ..Profile::default()
        };
        return Client::new(&profile, None);
    }
    let profiles = Profiles::at(common.profiles.clone())?;
    let name = common.profile();
    let profile = profiles.find(&name)?.ok_or_else(|| {
        Failure::NotLoggedIn(format!(
            "there is no profile {name}: hy2ctl login --url URL"
        ))
    })?;
    // A login takes its address from there as well: alone it says no more than where that was.
    if let Some(url) =
        url.filter(|url| url.trim_end_matches('/') != profile.url.trim_end_matches('/'))
    {
        return Err(Failure::Usage(format!(
            "HY2CTL_URL is {url}, HY2CTL_TOKEN is not set, and the profile {name} is of {}: set both, or name a --profile",
            profile.url
        )));
    }
    Client::new(&profile, Some(Keeper { profiles, name }))
}

async fn version(common: &Common, output: &Output) -> Result<(), Failure> {
    let mut answer = json!({"hy2ctl": env!("CARGO_PKG_VERSION")});
    // Without a profile there is nobody to ask; one that does not answer is worth saying.
    if let Ok(client) = client(common) {
        match client.get("/openapi.json", &[]).await {
            Ok(document) => answer["api"] = document["info"]["version"].clone(),
            Err(failure) => output.note(&format!("the orchestrator: {failure}")),
        }
    }
    output.record(&answer)
}

/// Pages of a list.
#[derive(Debug, Args)]
pub(crate) struct Pages {
    /// How many at most, 1 to 500
    #[arg(long, value_name = "N", default_value_t = 50)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=500))]
    size: u16,

    /// Go on behind this; the end of a list says what
    #[arg(long, value_name = "WHERE")]
    after: Option<String>,

    /// All of them
    #[arg(long, conflicts_with_all = ["size", "after"])]
    all: bool,
}

impl Pages {
    /// Reads a page of a list, or all of it.
    async fn read(
        &self,
        client: &Client,
        path: &str,
        mut query: Vec<(&'static str, String)>,
    ) -> Result<Value, Failure> {
        let size = if self.all { 500 } else { self.size };
        query.push(("size", size.to_string()));
        let filters = query.len();
        query.extend(self.after.clone().map(|after| ("after", after)));
        let mut answer = client.get(path, &query).await?;
        while self.all
            && let Some(next) = answer["next"].as_str()
        {
            query.truncate(filters);
            query.push(("after", next.to_owned()));
            let mut page = client.get(path, &query).await?;
            let mut items = std::mem::take(&mut answer["items"]);
            if let (Some(items), Some(more)) = (items.as_array_mut(), page["items"].as_array_mut())
            {
                items.append(more);
            }
            page["items"] = items;
            answer = page;
        }
        Ok(answer)
    }

    async fn show(
        &self,
        client: &Client,
        output: &Output,
        path: &str,
        query: Vec<(&'static str, String)>,
        columns: &[Column],
    ) -> Result<(), Failure> {
        output.list(&self.read(client, path, query).await?, columns)
    }
}

/// Puts together a query of what is there.
fn query<const N: usize>(
    parts: [(&'static str, Option<String>); N],
) -> Vec<(&'static str, String)> {
    let there = parts.into_iter();
    there
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

/// Puts together a body of what is there.
fn body<const N: usize>(parts: [(&str, Option<Value>); N]) -> Map<String, Value> {
    let there = parts.into_iter();
    there
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

/// Returns a change, if there is one.
fn change(body: Map<String, Value>) -> Result<Value, Failure> {
    match body.is_empty() {
        true => Err(Failure::Usage(
            "nothing to change: name at least one field".to_owned(),
        )),
        false => Ok(Value::Object(body)),
    }
}

/// Returns a list for a body, if it has anything in it; `none` empties it.
fn list(items: &[String]) -> Option<Value> {
    match items {
        [] => None,
        [none] if none == "none" => Some(json!([])),
        items => Some(json!(items)),
    }
}

/// Returns the text of a moment or a choice for a query.
fn plain(value: Option<Value>) -> Option<String> {
    value.map(|value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    })
}

/// Checks that a text is an id, so that it cannot lead elsewhere in a path.
fn segment(id: &str) -> Result<&str, Failure> {
    match !id.is_empty()
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        true => Ok(id),
        false => Err(Failure::Usage(format!("{id} is not an id"))),
    }
}
