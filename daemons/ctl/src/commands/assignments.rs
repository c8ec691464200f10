//! Which users are on which nodes.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Pages, body, query};
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
    ("USER", "user_id"),
    ("NODE", "node_id"),
    ("RANK", "rank"),
    ("SOURCE", "source"),
    ("SINCE", "assigned_at"),
    ("RELEASED", "released_at"),
];

#[derive(Debug, Subcommand)]
pub(crate) enum Assignments {
    /// List assignments
    List {
        /// Only of this user, id or name
        #[arg(long)]
        user: Option<String>,
        /// Only on this node, id or name
        #[arg(long)]
        node: Option<String>,
        /// Released ones too
        #[arg(long)]
        released: bool,
        #[command(flatten)]
        pages: Pages,
    },
    /// Put a user on a node
    Add {
        /// User, id or name
        user: String,
        /// Node, id or name
        node: String,
        /// Place in the user's list of servers, 0 the first
        #[arg(long, value_name = "N", value_parser = units::number)]
        rank: Option<Value>,
        /// No balancing moves it
        #[arg(long)]
        pinned: bool,
    },
    /// Take a user off a node
    Remove {
        /// User, id or name
        user: String,
        /// Node, id or name
        node: String,
    },
}

impl Assignments {
    pub(crate) async fn run(
        self,
        common: &Common,
        client: &Client,
        output: &Output,
    ) -> Result<(), Failure> {
        match self {
            Self::List {
                user,
                node,
                released,
                pages,
            } => {
                let filters = query([
                    ("user_id", named(client, Kind::User, user).await?),
                    ("node_id", named(client, Kind::Node, node).await?),
                    ("released", released.then(|| "true".to_owned())),
                ]);
                pages
                    .show(client, output, "/assignments", filters, COLUMNS)
                    .await
            }
            Self::Add {
                user,
                node,
                rank,
                pinned,
            } => {
                let fields = body([
                    (
                        "user_id",
                        Some(names::id(client, Kind::User, &user).await?.into()),
                    ),
                    (
                        "node_id",
                        Some(names::id(client, Kind::Node, &node).await?.into()),
                    ),
                    ("rank", rank),
                    ("pinned", Some(pinned.into())),
                ]);
                let made = client.post("/assignments", &Value::Object(fields)).await?;
                output.done(&made, &format!("user {user} is on node {node}"))
            }
            Self::Remove { user, node } => {
                confirm(common.yes, &format!("Take user {user} off node {node}"))?;
                let user_id = names::id(client, Kind::User, &user).await?;
                let node_id = names::id(client, Kind::Node, &node).await?;
                client
                    .delete(&format!("/assignments/{user_id}/{node_id}"))
                    .await?;
                let answer = json!({"user_id": user_id, "node_id": node_id});
                output.done(&answer, &format!("user {user} is not on node {node}"))
            }
        }
    }
}

/// Returns the id of what may be named, for a query.
pub(super) async fn named(
    client: &Client,
    kind: Kind,
    text: Option<String>,
) -> Result<Option<String>, Failure> {
    match text {
        Some(text) => Ok(Some(names::id(client, kind, &text).await?.to_string())),
        None => Ok(None),
    }
}
