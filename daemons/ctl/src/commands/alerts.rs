//! What somebody should look at.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Pages, query, segment};
use crate::{
    client::Client,
    failure::Failure,
    names::{self, Kind},
    output::{Column, Output},
};

const COLUMNS: &[Column] = &[
    ("ID", "id"),
    ("NODE", "node_id"),
    ("RULE", "rule"),
    ("SEVERITY", "severity"),
    ("SINCE", "opened_at"),
    ("CLOSED", "closed_at"),
    ("MESSAGE", "message"),
];

#[derive(Debug, Subcommand)]
pub(crate) enum Alerts {
    /// List alerts, the newest first
    List {
        /// Only open ones
        #[arg(long)]
        open: bool,
        /// Only of this node: name or id
        #[arg(long)]
        node: Option<String>,
        #[command(flatten)]
        pages: Pages,
    },
    /// Close an alert that somebody has looked at; what goes on opens another
    Close {
        /// Its id
        id: String,
    },
}

impl Alerts {
    pub(crate) async fn run(self, client: &Client, output: &Output) -> Result<(), Failure> {
        match self {
            Self::List { open, node, pages } => {
                let node = names::maybe(client, Kind::Node, node.as_deref()).await?;
                let filters = query([
                    ("open", open.then(|| "true".to_owned())),
                    ("node_id", node.as_ref().map(Value::to_string)),
                ]);
                pages
                    .show(client, output, "/alerts", filters, COLUMNS)
                    .await
            }
            Self::Close { id } => {
                let path = format!("/alerts/{}/close", segment(&id)?);
                let closed = client.post(&path, &json!({})).await?;
                output.done(&closed, &format!("alert {id} is closed"))
            }
        }
    }
}
