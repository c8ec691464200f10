//! How much went through.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::{assignments::named, plain, query};
use crate::{
    client::Client,
    failure::Failure,
    names::Kind,
    output::{Column, Output},
    units,
};

const SERIES: &[Column] = &[("AT", "at"), ("UP", "tx_bytes"), ("DOWN", "rx_bytes")];

const TOP: &[Column] = &[
    ("ID", "user_id"),
    ("USERNAME", "username"),
    ("UP", "tx_bytes"),
    ("DOWN", "rx_bytes"),
];

#[derive(Debug, Subcommand)]
pub(crate) enum Traffic {
    /// Sums: without times and node, since ever
    Summary(Span),
    /// By hour or day
    Series {
        #[command(flatten)]
        span: Span,
        /// How finely
        #[arg(long, value_enum, default_value = "hour")]
        step: Step,
    },
    /// Who used most
    Top {
        #[command(flatten)]
        span: Span,
        /// How many, 1 to 500
        #[arg(long, value_name = "N", default_value_t = 20)]
        #[arg(value_parser = clap::value_parser!(u16).range(1..=500))]
        size: u16,
    },
}

/// Whose, where and when.
#[derive(Debug, Args)]
pub(crate) struct Span {
    /// Only of this user, id or name
    #[arg(long)]
    user: Option<String>,
    /// Only through this node, id or name
    #[arg(long)]
    node: Option<String>,
    /// From when: 24h (ago), 2026-12-31
    #[arg(long, value_name = "WHEN", value_parser = units::past)]
    from: Option<Value>,
    /// Until when: now
    #[arg(long, value_name = "WHEN", value_parser = units::past)]
    to: Option<Value>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Step {
    Hour,
    Day,
}

impl Span {
    async fn query(self, client: &Client) -> Result<Vec<(&'static str, String)>, Failure> {
        Ok(query([
            ("user_id", named(client, Kind::User, self.user).await?),
            ("node_id", named(client, Kind::Node, self.node).await?),
            ("from", plain(self.from)),
            ("to", plain(self.to)),
        ]))
    }
}

impl Traffic {
    pub(crate) async fn run(self, client: &Client, output: &Output) -> Result<(), Failure> {
        match self {
            Self::Summary(span) => {
                let query = span.query(client).await?;
                output.record(&client.get("/traffic/summary", &query).await?)
            }
            Self::Series { span, step } => {
                let mut query = span.query(client).await?;
                let step = match step {
                    Step::Hour => "hour",
                    Step::Day => "day",
                };
                query.push(("step", step.to_owned()));
                output.list(&client.get("/traffic/series", &query).await?, SERIES)
            }
            Self::Top { span, size } => {
                let mut query = span.query(client).await?;
                query.push(("size", size.to_string()));
                output.list(&client.get("/traffic/top", &query).await?, TOP)
            }
        }
    }
}
