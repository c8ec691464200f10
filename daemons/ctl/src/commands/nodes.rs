//! Nodes and the tokens with which they enrol.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Pages, body, change, list, query, segment};
use crate::{
    ask::confirm,
    cli::Common,
    client::Client,
    failure::Failure,
    names::{self, Kind},
    output::{Column, Output},
    units,
};

const COLUMNS: &[Column] = &[
    ("ID", "id"),
    ("NAME", "name"),
    ("WANTED", "desired_state"),
    ("STATE", "observed_state"),
    ("ADDRESS", "public_host"),
    ("PORT", "listen_port"),
    ("USERS", "users_online"),
    ("CONNECTIONS", "connections"),
    ("REVISION", "applied_rev"),
    ("OF", "desired_rev"),
    ("LAST SEEN", "last_seen_at"),
];

const TOKENS: &[Column] = &[
    ("ID", "id"),
    ("LABEL", "label"),
    ("EXPIRES", "expires_at"),
    ("USED", "used_at"),
    ("REVOKED", "revoked_at"),
    ("NODE", "node_id"),
];

const CERTIFICATES: &[Column] = &[
    ("SERIAL", "serial"),
    ("FROM", "not_before"),
    ("TO", "not_after"),
    ("REPLACED", "replaced_at"),
    ("REVOKED", "revoked_at"),
    ("WHY", "revoke_reason"),
];

/// A node.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Id or name; name:42 where the name is a number
    node: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Nodes {
    /// List nodes
    List {
        /// Only in this state: pending, online, suspect, offline, …
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
        /// Only with this in the name
        #[arg(long, value_name = "TEXT")]
        search: Option<String>,
        #[command(flatten)]
        pages: Pages,
    },
    /// Show a node
    Show(Which),
    /// Change what operators decide of a node
    Update(Box<Update>),
    /// Tokens with which nodes enrol
    #[command(subcommand)]
    Token(Token),
    /// Give it no new users; those it has stay
    Cordon(Which),
    /// Let it serve again
    Uncordon(Which),
    /// Send its users elsewhere, and close what is left at the deadline
    Drain {
        #[command(flatten)]
        which: Which,
        /// Until when it may take: 15m, 2026-12-31T12:00:00Z
        #[arg(long, value_name = "WHEN", default_value = "15m", value_parser = units::future)]
        deadline: Value,
    },
    /// Stop it from serving
    Disable(Which),
    /// Take its identity away: its connections are cut, it has to enrol anew
    Revoke {
        #[command(flatten)]
        which: Which,
        /// For the record
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Write off what a node that is away was lent of quotas, so that its users can have it elsewhere
    Forfeit(Which),
    /// Delete a node
    Delete(Which),
    /// List a node's certificates
    Certificates(Which),
    /// Show a node's latest figures
    Metrics {
        #[command(flatten)]
        which: Which,
        /// From when: 1h, 2026-12-31
        #[arg(long, value_name = "WHEN", default_value = "1h", value_parser = units::past)]
        from: Value,
        /// Seconds between samples: 15, 300 or 3600
        #[arg(long, value_name = "SECONDS", default_value = "300")]
        resolution: u32,
    },
}

/// Fields to change; `none` clears one.
#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    which: Which,
    /// New name
    #[arg(long)]
    name: Option<String>,
    /// Where clients reach it
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// UDP port of its server
    #[arg(long, value_parser = units::number)]
    port: Option<Value>,
    /// How much of the users it gets beside others
    #[arg(long, value_parser = units::number)]
    weight: Option<Value>,
    /// How many connections it can carry
    #[arg(long, value_name = "N", value_parser = units::or_none(units::number))]
    capacity: Option<Value>,
    /// What one byte counts of quotas: 1.5, 0 for nothing
    #[arg(long, value_name = "FACTOR", value_parser = units::billionths)]
    billing_multiplier: Option<Value>,
    /// Region, code or id
    #[arg(long)]
    region: Option<String>,
    /// Two letters
    #[arg(long, value_parser = units::or_none(units::text))]
    country: Option<Value>,
    /// Who rents it out
    #[arg(long, value_parser = units::or_none(units::text))]
    provider: Option<Value>,
    /// For people
    #[arg(long)]
    note: Option<String>,
    /// Tag, again for each; replaces all
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token for one node; it is shown once
    Create {
        /// What it is for
        #[arg(long, default_value = "")]
        label: String,
        /// For how long: 15m
        #[arg(long, value_name = "SPAN", value_parser = units::seconds)]
        valid: Option<Value>,
        /// From where it may be used: 192.0.2.0/24
        #[arg(long, value_name = "CIDR")]
        bind: Option<String>,
        /// Region that the node is in, code or id
        #[arg(long)]
        region: Option<String>,
        /// Tag that the node gets, again for each
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
    },
    /// List tokens
    List,
    /// Make an unused token worthless
    Revoke {
        /// Id
        id: String,
    },
}

impl Which {
    async fn path(&self, client: &Client) -> Result<String, Failure> {
        let id = names::id(client, Kind::Node, &self.node).await?;
        Ok(format!("/nodes/{id}"))
    }

    async fn set(
        &self,
        client: &Client,
        output: &Output,
        state: &str,
        deadline: Option<Value>,
    ) -> Result<(), Failure> {
        let path = format!("{}/state", self.path(client).await?);
        let wanted = body([("state", Some(state.into())), ("drain_deadline", deadline)]);
        let node = client.put(&path, &Value::Object(wanted)).await?;
        output.done(&node, &format!("node {} is {state}", self.node))
    }
}

impl Nodes {
    pub(crate) async fn run(
        self,
        common: &Common,
        client: &Client,
        output: &Output,
    ) -> Result<(), Failure> {
        match self {
            Self::List {
                state,
                search,
                pages,
            } => {
                let filters = query([("observed_state", state), ("search", search)]);
                pages.show(client, output, "/nodes", filters, COLUMNS).await
            }
            Self::Show(which) => output.record(&client.get(&which.path(client).await?, &[]).await?),
            Self::Update(update) => update.run(client, output).await,
            Self::Token(token) => token.run(client, output).await,
            Self::Cordon(which) => which.set(client, output, "cordoned", None).await,
            Self::Uncordon(which) => which.set(client, output, "active", None).await,
            Self::Drain { which, deadline } => {
                confirm(
                    common.yes,
                    &format!("Drain node {} of its users", which.node),
                )?;
                which.set(client, output, "draining", Some(deadline)).await
            }
            Self::Disable(which) => {
                confirm(
                    common.yes,
                    &format!("Stop node {} from serving", which.node),
                )?;
                which.set(client, output, "disabled", None).await
            }
            Self::Revoke { which, reason } => {
                confirm(
                    common.yes,
                    &format!("Revoke the identity of node {}", which.node),
                )?;
                let path = format!("{}/certificates/revoke", which.path(client).await?);
                let node = client.post(&path, &json!({"reason": reason})).await?;
                output.done(&node, &format!("node {} is revoked", which.node))
            }
            Self::Forfeit(which) => {
                confirm(
                    common.yes,
                    &format!("Write off what node {} was lent", which.node),
                )?;
                let path = format!("{}/forfeit", which.path(client).await?);
                let done = client.post(&path, &json!({})).await?;
                let slices = done["slices"].as_u64().unwrap_or_default();
                output.done(
                    &done,
                    &format!("node {}: {slices} slices are free again", which.node),
                )
            }
            Self::Delete(which) => {
                confirm(common.yes, &format!("Delete node {}", which.node))?;
                client.delete(&which.path(client).await?).await?;
                output.done(
                    &json!({"deleted": which.node}),
                    &format!("node {} is deleted", which.node),
                )
            }
            Self::Certificates(which) => {
                let path = format!("{}/certificates", which.path(client).await?);
                output.list(&client.get(&path, &[]).await?, CERTIFICATES)
            }
            Self::Metrics {
                which,
                from,
                resolution,
            } => {
                let path = format!("{}/metrics", which.path(client).await?);
                let span = query([
                    ("from", super::plain(Some(from))),
                    ("resolution_s", Some(resolution.to_string())),
                ]);
                output.list(&client.get(&path, &span).await?, METRICS)
            }
        }
    }
}

const METRICS: &[Column] = &[
    ("AT", "at"),
    ("CPU ‰", "cpu_permille"),
    ("MEMORY", "memory_used_bytes"),
    ("UP", "tx_bytes_per_s"),
    ("DOWN", "rx_bytes_per_s"),
    ("USERS", "users_online"),
    ("CONNECTIONS", "connections"),
    ("RTT MS", "rtt_p50_ms"),
    ("LOSS ‰", "loss_permille"),
    ("SPOOL", "spool_bytes"),
];

impl Update {
    async fn run(self, client: &Client, output: &Output) -> Result<(), Failure> {
        let region = names::maybe(client, Kind::Region, self.region.as_deref()).await?;
        let fields = change(body([
            ("name", self.name.map(Value::from)),
            ("region_id", region),
            ("public_host", self.host.map(Value::from)),
            ("listen_port", self.port),
            ("weight", self.weight),
            ("capacity_sessions", self.capacity),
            ("billing_multiplier", self.billing_multiplier),
            ("country", self.country),
            ("provider", self.provider),
            ("note", self.note.map(Value::from)),
            ("tags", list(&self.tags)),
        ]))?;
        let node = client
            .patch(&self.which.path(client).await?, &fields)
            .await?;
        output.record(&node)
    }
}

impl Token {
    async fn run(self, client: &Client, output: &Output) -> Result<(), Failure> {
        match self {
            Self::Create {
                label,
                valid,
                bind,
                region,
                tags,
            } => {
                let region = names::maybe(client, Kind::Region, region.as_deref()).await?;
                let token = body([
                    ("label", Some(label.into())),
                    ("valid_s", valid),
                    ("bind_cidr", bind.map(Value::from)),
                    ("region_id", region),
                    ("tags", list(&tags)),
                ]);
                let made = client
                    .post("/enrolment-tokens", &Value::Object(token))
                    .await?;
                let text = |key: &str| made[key].as_str().unwrap_or_default().to_owned();
                output.note("shown once; on the node: hy2-agent enrol --ca-pin PIN, with the token on standard input");
                let words = format!(
                    "token   {}\nca pin  {}\nuntil   {}",
                    text("token"),
                    text("ca_pin"),
                    text("expires_at")
                );
                match output.is_json() {
                    true => output.raw(&made),
                    false => output.line(&words),
                }
            }
            Self::List => output.list(&client.get("/enrolment-tokens", &[]).await?, TOKENS),
            Self::Revoke { id } => {
                client
                    .delete(&format!("/enrolment-tokens/{}", segment(&id)?))
                    .await?;
                output.done(&json!({"revoked": id}), "the token is worthless")
            }
        }
    }
}
