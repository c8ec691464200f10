//! Plans.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{Pages, body, change, query};
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
    ("QUOTA", "quota_bytes"),
    ("PERIOD", "period"),
    ("DAYS", "duration_days"),
    ("DEVICES", "max_devices"),
    ("UP", "up_bytes_per_s"),
    ("DOWN", "down_bytes_per_s"),
    ("NODES", "nodes_per_user"),
    ("ARCHIVED", "archived_at"),
];

/// A plan.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Id or name; name:42 where the name is a number
    plan: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Plans {
    /// List plans
    List {
        /// Archived ones too
        #[arg(long)]
        archived: bool,
        #[command(flatten)]
        pages: Pages,
    },
    /// Show a plan
    Show(Which),
    /// Make a plan
    Create {
        /// Name
        name: String,
        #[command(flatten)]
        terms: Terms,
    },
    /// Change a plan, for all of its users; `none` clears a field
    Update {
        #[command(flatten)]
        which: Which,
        /// New name
        #[arg(long, value_name = "NAME")]
        rename: Option<String>,
        #[command(flatten)]
        terms: Terms,
    },
    /// Give it to nobody new
    Archive(Which),
    /// Give it to people again
    Unarchive(Which),
    /// Delete a plan that nobody has
    Delete(Which),
}

/// What a plan gives.
#[derive(Debug, Args)]
pub(crate) struct Terms {
    /// How much in a period: 100GiB
    #[arg(long, value_name = "AMOUNT", value_parser = units::or_none(units::bytes))]
    quota: Option<Value>,
    /// When the quota begins anew: none, day, week, month, month_rolling, year
    #[arg(long)]
    period: Option<String>,
    /// For how many days
    #[arg(long, value_name = "N", value_parser = units::or_none(units::number))]
    days: Option<Value>,
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
    /// On how many nodes each user is
    #[arg(long, value_name = "N", value_parser = units::number)]
    nodes: Option<Value>,
    /// What follows it, id or name
    #[arg(long, value_name = "PLAN")]
    next: Option<String>,
}

impl Terms {
    async fn body(self, client: &Client) -> Result<Map<String, Value>, Failure> {
        let next = names::maybe(client, Kind::Plan, self.next.as_deref()).await?;
        Ok(body([
            ("quota_bytes", self.quota),
            ("period", self.period.map(Value::from)),
            ("duration_days", self.days),
            ("max_devices", self.devices),
            ("max_connections", self.connections),
            ("up_bytes_per_s", self.up),
            ("down_bytes_per_s", self.down),
            ("nodes_per_user", self.nodes),
            ("next_plan_id", next),
        ]))
    }
}

impl Which {
    async fn path(&self, client: &Client) -> Result<String, Failure> {
        let id = names::id(client, Kind::Plan, &self.plan).await?;
        Ok(format!("/plans/{id}"))
    }

    async fn archive(&self, client: &Client, output: &Output, yes: bool) -> Result<(), Failure> {
        let path = self.path(client).await?;
        let plan = client.patch(&path, &json!({"archived": yes})).await?;
        let state = if yes { "archived" } else { "given out again" };
        output.done(&plan, &format!("plan {} is {state}", self.plan))
    }
}

impl Plans {
    pub(crate) async fn run(
        self,
        common: &Common,
        client: &Client,
        output: &Output,
    ) -> Result<(), Failure> {
        match self {
            Self::List { archived, pages } => {
                let filters = query([("archived", archived.then(|| "true".to_owned()))]);
                pages.show(client, output, "/plans", filters, COLUMNS).await
            }
            Self::Show(which) => output.record(&client.get(&which.path(client).await?, &[]).await?),
            Self::Create { name, terms } => {
                let mut fields = terms.body(client).await?;
                fields.retain(|_, value| !value.is_null());
                fields.insert("name".to_owned(), name.into());
                output.record(&client.post("/plans", &Value::Object(fields)).await?)
            }
            Self::Update {
                which,
                rename,
                terms,
            } => {
                let mut fields = terms.body(client).await?;
                fields.extend(body([("name", rename.map(Value::from))]));
                let fields = change(fields)?;
                output.record(&client.patch(&which.path(client).await?, &fields).await?)
            }
            Self::Archive(which) => which.archive(client, output, true).await,
            Self::Unarchive(which) => which.archive(client, output, false).await,
            Self::Delete(which) => {
                confirm(common.yes, &format!("Delete plan {}", which.plan))?;
                client.delete(&which.path(client).await?).await?;
                output.done(
                    &json!({"deleted": which.plan}),
                    &format!("plan {} is deleted", which.plan),
                )
            }
        }
    }
}
