//! Live connections.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    ask::confirm,
    cli::Common,
    client::Client,
    failure::Failure,
    names::{self, Kind},
    output::{Column, Output},
};

const COLUMNS: &[Column] = &[
    ("NODE", "node_id"),
    ("USER", "user_id"),
    ("CONNECTION", "connection_id"),
    ("FROM", "remote"),
    ("SINCE", "since"),
    ("UP", "tx_bytes"),
    ("DOWN", "rx_bytes"),
    ("RTT MS", "rtt_ms"),
    ("TCP", "tcp_streams"),
    ("UDP", "udp_sessions"),
];

#[derive(Debug, Subcommand)]
pub(crate) enum Sessions {
    /// List live connections, of all nodes unless one is named
    List {
        /// Only of this user, id or name
        #[arg(long)]
        user: Option<String>,
        /// Only on this node, id or name
        #[arg(long, conflicts_with = "user")]
        node: Option<String>,
    },
    /// Close a user's live connections; they may come again
    Kick {
        /// User, id or name
        user: String,
    },
}

impl Sessions {
    pub(crate) async fn run(
        self,
        common: &Common,
        client: &Client,
        output: &Output,
    ) -> Result<(), Failure> {
        match self {
            Self::List {
                user: Some(user), ..
            } => {
                let id = names::id(client, Kind::User, &user).await?;
                show(
                    output,
                    &client.get(&format!("/users/{id}/sessions"), &[]).await?,
                )
            }
            Self::List {
                node: Some(node), ..
            } => {
                let id = names::id(client, Kind::Node, &node).await?;
                show(
                    output,
                    &client.get(&format!("/nodes/{id}/sessions"), &[]).await?,
                )
            }
            Self::List { .. } => show(output, &everywhere(client).await?),
            Self::Kick { user } => {
                confirm(common.yes, &format!("Close the connections of user {user}"))?;
                kick(client, output, &user).await
            }
        }
    }
}

/// Asks node by node.
async fn everywhere(client: &Client) -> Result<Value, Failure> {
    let mut all =
        json!({"items": [], "reach": {"reached": [], "unreachable": [], "connections": 0}});
    let mut after = None::<String>;
    loop {
        let mut query = vec![("size", "500".to_owned())];
        query.extend(after.take().map(|after| ("after", after)));
        let page = client.get("/nodes", &query).await?;
        for node in page["items"].as_array().into_iter().flatten() {
            let mut of = client
                .get(&format!("/nodes/{}/sessions", node["id"]), &[])
                .await?;
            for path in ["/items", "/reach/reached", "/reach/unreachable"] {
                let more = of
                    .pointer_mut(path)
                    .and_then(Value::as_array_mut)
                    .map(std::mem::take);
                if let Some(list) = all.pointer_mut(path).and_then(Value::as_array_mut) {
                    list.extend(more.into_iter().flatten());
                }
            }
        }
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => break,
        }
    }
    let count = all["items"].as_array().map_or(0, Vec::len);
    all["reach"]["connections"] = count.into();
    Ok(all)
}

/// Closes a user's connections.
pub(super) async fn kick(client: &Client, output: &Output, user: &str) -> Result<(), Failure> {
    let id = names::id(client, Kind::User, user).await?;
    let answer = client
        .post(&format!("/users/{id}/kick"), &json!({}))
        .await?;
    reach(output, &answer, "closed")
}

/// Shows connections, and which nodes did not answer.
pub(super) fn show(output: &Output, answer: &Value) -> Result<(), Failure> {
    output.list(answer, COLUMNS)?;
    unreachable(output, &answer["reach"]);
    Ok(())
}

/// Says what came of asking nodes.
pub(super) fn reach(output: &Output, answer: &Value, what: &str) -> Result<(), Failure> {
    output.done(
        answer,
        &format!("{} connections {what}", answer["connections"]),
    )?;
    unreachable(output, answer);
    Ok(())
}

fn unreachable(output: &Output, reach: &Value) {
    let nodes = reach["unreachable"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    if !nodes.is_empty() {
        let nodes: Vec<String> = nodes.iter().map(Value::to_string).collect();
        output.note(&format!("not reached: node {}", nodes.join(", ")));
    }
}
