//! Users.

use std::{io::Write, path::PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Map, Value, json};

use super::{Pages, body, change, list, query, sessions};
use crate::{
    ask::{self, confirm},
    cli::Common,
    client::Client,
    failure::Failure,
    names::{self, Kind},
    output::{Column, Output},
    units,
};

const COLUMNS: &[Column] = &[
    ("ID", "id"),
    ("USERNAME", "username"),
    ("STATUS", "status"),
    ("USED", "used_bytes"),
    ("QUOTA", "quota_bytes"),
    ("EXPIRES", "expires_at"),
    ("PLAN", "plan_id"),
    ("ONLINE", "online_at"),
];

/// A user.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Id or name; name:42 where the name is a number
    user: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Sort {
    Id,
    Username,
    CreatedAt,
    ExpiresAt,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    Csv,
    Json,
    Marzban,
    #[value(name = "3x-ui")]
    ThreeXUi,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ExportFormat {
    Csv,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Users {
    /// List users
    List {
        /// Only with this status: active, disabled, limited, expired, on_hold
        #[arg(long)]
        status: Option<String>,
        /// Only with this plan, id or name
        #[arg(long)]
        plan: Option<String>,
        /// Only with this in the name
        #[arg(long, value_name = "TEXT")]
        search: Option<String>,
        /// In which order
        #[arg(long, value_enum)]
        sort: Option<Sort>,
        /// Backwards
        #[arg(long)]
        descending: bool,
        #[command(flatten)]
        pages: Pages,
    },
    /// Show a user
    Show(Which),
    /// Make a user
    Create(Create),
    /// Change a user; `none` clears a field
    Update(Update),
    /// Let users connect
    Enable(Several),
    /// Cut users off
    Disable(Several),
    /// Delete users; what they used stays in the accounts
    Delete(Several),
    /// Begin to count a user's traffic anew
    Reset {
        #[command(flatten)]
        which: Which,
        /// For the record
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Close a user's live connections; they may come again
    Kick(Which),
    /// Limit a user's live connections for a while
    Rate {
        #[command(flatten)]
        which: Which,
        /// From the client: 10mbps
        #[arg(long, value_name = "RATE", value_parser = units::rate)]
        up: Option<Value>,
        /// To the client: 50mbps
        #[arg(long, value_name = "RATE", value_parser = units::rate)]
        down: Option<Value>,
        /// For how long: 2h
        #[arg(long, value_name = "SPAN", value_parser = units::seconds)]
        lasting: Option<Value>,
    },
    /// Show a user's subscription link
    Link {
        #[command(flatten)]
        which: Which,
        /// As a QR code too
        #[arg(long)]
        qr: bool,
        /// Make a new one first; the old one is worthless then
        #[arg(long)]
        rotate: bool,
    },
    /// Give a user new credentials; every device needs the subscription anew
    RotateCredentials(Which),
    /// List a user's live connections
    Sessions(Which),
    /// Make the users of a file that do not exist yet
    Import {
        /// File, "-" for standard input
        file: PathBuf,
        /// Where it comes from
        #[arg(long, value_enum)]
        format: Format,
        /// Plan for all of them, id or name
        #[arg(long)]
        plan: Option<String>,
        /// Say what would happen and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Print all users, as `import` reads them; no secrets
    Export {
        /// How
        #[arg(long, value_enum, default_value = "json")]
        format: ExportFormat,
    },
}

/// Several users.
#[derive(Debug, Args)]
pub(crate) struct Several {
    /// Ids or names, at most 500; name:42 where a name is a number
    #[arg(required = true, num_args = 1..=500)]
    users: Vec<String>,
}

/// What a user may have.
#[derive(Debug, Args)]
struct Limits {
    /// Plan, id or name
    #[arg(long)]
    plan: Option<String>,
    /// Home region, code or id: nodes in it come first
    #[arg(long)]
    region: Option<String>,
    /// How much in all: 100GiB
    #[arg(long, value_name = "AMOUNT", value_parser = units::or_none(units::bytes))]
    quota: Option<Value>,
    /// Until when: 30d, 2026-12-31
    #[arg(long, value_name = "WHEN", value_parser = units::or_none(units::future))]
    expires: Option<Value>,
    /// Devices at once
    #[arg(long, value_name = "N", value_parser = units::or_none(units::number))]
    devices: Option<Value>,
    /// Connections at once
    #[arg(long, value_name = "N", value_parser = units::or_none(units::number))]
    connections: Option<Value>,
    /// Fastest from the client: 20mbps
    #[arg(long, value_name = "RATE", value_parser = units::or_none(units::rate))]
    up: Option<Value>,
    /// Fastest to the client: 100mbps
    #[arg(long, value_name = "RATE", value_parser = units::or_none(units::rate))]
    down: Option<Value>,
    /// For people
    #[arg(long)]
    note: Option<String>,
    /// Address of mail
    #[arg(long, value_parser = units::or_none(units::text))]
    email: Option<Value>,
    /// Tag, again for each; replaces all
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
}

impl Limits {
    async fn body(self, client: &Client) -> Result<Map<String, Value>, Failure> {
        let plan = names::maybe(client, Kind::Plan, self.plan.as_deref()).await?;
        let region = names::maybe(client, Kind::Region, self.region.as_deref()).await?;
        Ok(body([
            ("plan_id", plan),
            ("home_region_id", region),
            ("quota_bytes", self.quota),
            ("expires_at", self.expires),
            ("max_devices", self.devices),
            ("max_connections", self.connections),
            ("up_bytes_per_s", self.up),
            ("down_bytes_per_s", self.down),
            ("note", self.note.map(Value::from)),
            ("email", self.email),
            ("tags", list(&self.tags)),
        ]))
    }
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name
    username: String,
    #[command(flatten)]
    limits: Limits,
    /// Count the time only from the first connection on: 30d
    #[arg(long, value_name = "SPAN", value_parser = units::seconds, conflicts_with = "expires")]
    hold: Option<Value>,
    /// Node to be on, id or name, again for each; absent: chosen by load
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
    /// File with a password of one's own choice, "-" for standard input; absent: a generated one
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    which: Which,
    /// New name
    #[arg(long, value_name = "NAME")]
    rename: Option<String>,
    #[command(flatten)]
    limits: Limits,
}

impl Which {
    async fn path(&self, client: &Client) -> Result<String, Failure> {
        let id = names::id(client, Kind::User, &self.user).await?;
        Ok(format!("/users/{id}"))
    }
}

impl Several {
    /// Does the same with all of them, or with none.
    async fn run(self, client: &Client, output: &Output, action: &str) -> Result<(), Failure> {
        let mut ids = Vec::with_capacity(self.users.len());
        for user in &self.users {
            ids.push(names::id(client, Kind::User, user).await?);
        }
        let answer = client
            .post("/users:batch", &json!({"action": action, "ids": ids}))
            .await?;
        output.done(
            &answer,
            &format!("{} of {} changed", answer["changed"], ids.len()),
        )
    }

    fn name(&self) -> String {
        match self.users.as_slice() {
            [one] => format!("user {one}"),
            many => format!("{} users", many.len()),
        }
    }
}

impl Users {
    pub(crate) async fn run(
        self,
        common: &Common,
        client: &Client,
        output: &Output,
    ) -> Result<(), Failure> {
        match self {
            Self::List {
                status,
                plan,
                search,
                sort,
                descending,
                pages,
            } => {
                let plan = match plan {
                    Some(plan) => Some(names::id(client, Kind::Plan, &plan).await?.to_string()),
                    None => None,
                };
                let sort = sort.map(|sort| {
                    match sort {
                        Sort::Id => "id",
                        Sort::Username => "username",
                        Sort::CreatedAt => "created_at",
                        Sort::ExpiresAt => "expires_at",
                    }
                    .to_owned()
                });
                let filters = query([
                    ("status", status),
                    ("plan_id", plan),
                    ("search", search),
                    ("sort", sort),
                    ("descending", descending.then(|| "true".to_owned())),
                ]);
                pages.show(client, output, "/users", filters, COLUMNS).await
            }
            Self::Show(which) => output.record(&client.get(&which.path(client).await?, &[]).await?),
            Self::Create(create) => create.run(client, output).await,
            Self::Update(update) => {
                let mut fields = update.limits.body(client).await?;
                fields.extend(body([("username", update.rename.map(Value::from))]));
                let fields = change(fields)?;
                let path = update.which.path(client).await?;
                output.record(&client.patch(&path, &fields).await?)
            }
            Self::Enable(users) => users.run(client, output, "enable").await,
            Self::Disable(users) => users.run(client, output, "disable").await,
            Self::Delete(users) => {
                confirm(common.yes, &format!("Delete {}", users.name()))?;
                users.run(client, output, "delete").await
            }
            Self::Reset { which, reason } => {
                confirm(
                    common.yes,
                    &format!("Count the traffic of user {} anew", which.user),
                )?;
                let path = format!("{}/reset", which.path(client).await?);
                let user = client.post(&path, &json!({"reason": reason})).await?;
                output.done(
                    &user,
                    &format!("the traffic of {} counts from zero", which.user),
                )
            }
            Self::Kick(which) => sessions::kick(client, output, &which.user).await,
            Self::Rate {
                which,
                up,
                down,
                lasting,
            } => {
                let path = format!("{}/rate", which.path(client).await?);
                let fields = change(body([
                    ("up_bytes_per_s", up),
                    ("down_bytes_per_s", down),
                    ("for_s", lasting),
                ]))?;
                sessions::reach(output, &client.post(&path, &fields).await?, "limited")
            }
            Self::Link { which, qr, rotate } => {
                link(common, client, output, &which, qr, rotate).await
            }
            Self::RotateCredentials(which) => {
                confirm(
                    common.yes,
                    &format!("Make the credentials of user {} worthless", which.user),
                )?;
                let path = format!("{}/credentials/rotate", which.path(client).await?);
                let user = client.post(&path, &json!({})).await?;
                output.done(&user, &format!("user {} has new credentials", which.user))
            }
            Self::Sessions(which) => {
                let path = format!("{}/sessions", which.path(client).await?);
                sessions::show(output, &client.get(&path, &[]).await?)
            }
            Self::Import {
                file,
                format,
                plan,
                dry_run,
            } => import(client, output, file, format, plan, dry_run).await,
            Self::Export { format } => {
                let format = match format {
                    ExportFormat::Csv => "csv",
                    ExportFormat::Json => "json",
                };
                let query = [("format", format.to_owned())];
                let bytes = client
                    .bytes(Method::GET, "/users:export", &query, None)
                    .await?;
                let mut out = std::io::stdout().lock();
                out.write_all(&bytes)
                    .and_then(|()| out.flush())
                    .map_err(Failure::Output)
            }
        }
    }
}

impl Create {
    async fn run(self, client: &Client, output: &Output) -> Result<(), Failure> {
        let mut fields = self.limits.body(client).await?;
        // What is made has nothing to clear.
        fields.retain(|_, value| !value.is_null());
        let mut nodes = Vec::new();
        for node in &self.nodes {
            nodes.push(names::id(client, Kind::Node, node).await?);
        }
        let password = match &self.password_file {
            Some(file) => {
                let password = ask::secret("password", Some(file), "", false)?;
                Some(Value::from(password.as_str()))
            }
            None => None,
        };
        fields.extend(body([
            ("username", Some(self.username.into())),
            ("hold_duration_s", self.hold),
            ("node_ids", (!nodes.is_empty()).then(|| json!(nodes))),
            ("password", password),
        ]));
        output.record(&client.post("/users", &Value::Object(fields)).await?)
    }
}

async fn link(
    common: &Common,
    client: &Client,
    output: &Output,
    which: &Which,
    qr: bool,
    rotate: bool,
) -> Result<(), Failure> {
    let path = format!("{}/subscription", which.path(client).await?);
    let answer = if rotate {
        confirm(
            common.yes,
            &format!("Make the link of user {} worthless", which.user),
        )?;
        client.post(&format!("{path}/rotate"), &json!({})).await?
    } else {
        client.get(&path, &[]).await?
    };
    let url = answer["url"].as_str().unwrap_or_default();
    output.done(&answer, url)?;
    if qr && !output.is_json() {
        output.qr(url)?;
    }
    Ok(())
}

async fn import(
    client: &Client,
    output: &Output,
    file: PathBuf,
    format: Format,
    plan: Option<String>,
    dry_run: bool,
) -> Result<(), Failure> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).context("standard input")?
    } else {
        let text = std::fs::read_to_string(&file);
        text.with_context(|| format!("cannot read {}", file.display()))?
    };
    let plan = names::maybe(client, Kind::Plan, plan.as_deref()).await?;
    let format = format
        .to_possible_value()
        .map(|value| value.get_name().to_owned());
    let import = body([
        ("format", format.map(Value::from)),
        ("data", Some(text.into())),
        ("plan_id", plan),
    ]);
    let waiting = output.waiting("importing");
    let report = client
        .call(
            Method::POST,
            "/users:import",
            &[("dry_run", dry_run.to_string())],
            Some(&Value::Object(import)),
        )
        .await;
    waiting.finish();
    let report = report?;
    if output.is_json() {
        return output.raw(&report);
    }
    let count = |key: &str| report["counts"][key].as_u64().unwrap_or_default();
    output.line(&format!(
        "{} {}, {} skipped, {} renamed, {} failed",
        report["created"],
        if dry_run {
            "would be created"
        } else {
            "created"
        },
        count("skipped"),
        count("renamed"),
        count("failed"),
    ))?;
    for (list, what) in [("failed", ""), ("ignored", "left out: ")] {
        let issues = report[list].as_array().map_or(&[][..], Vec::as_slice);
        for issue in issues {
            let text = |key: &str| issue[key].as_str().unwrap_or_default().to_owned();
            output.note(&crate::output::clean(&format!(
                "  {what}{}: {}",
                text("path"),
                text("message")
            )));
        }
        let more = count(list).saturating_sub(issues.len() as u64);
        if more > 0 {
            output.note(&format!("  {what}and {more} more"));
        }
    }
    Ok(())
}
