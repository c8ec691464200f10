//! API tokens, for programs.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{body, list, segment};
use crate::{
    ask::confirm,
    cli::Common,
    client::Client,
    failure::Failure,
    output::{Column, Output},
    units,
};

const COLUMNS: &[Column] = &[
    ("ID", "id"),
    ("NAME", "name"),
    ("PREFIX", "prefix"),
    ("SCOPES", "scopes"),
    ("FROM", "cidrs"),
    ("EXPIRES", "expires_at"),
    ("LAST USED", "last_used_at"),
];

#[derive(Debug, Subcommand)]
pub(crate) enum ApiTokens {
    /// List tokens in force
    List,
    /// Make a token; it is shown once
    Create {
        /// What it is for
        name: String,
        /// What it may be used for, again for each: users:read, nodes:write, …
        #[arg(long = "scope", value_name = "SCOPE", required = true)]
        scopes: Vec<String>,
        /// From where it may be used, again for each: 192.0.2.0/24
        #[arg(long = "from", value_name = "CIDR")]
        cidrs: Vec<String>,
        /// Until when: 90d, 2026-12-31
        #[arg(long, value_name = "WHEN", value_parser = units::future)]
        expires: Option<Value>,
    },
    /// Make a token worthless
    Revoke {
        /// Id
        id: String,
    },
}

impl ApiTokens {
    pub(crate) async fn run(
        self,
        common: &Common,
        client: &Client,
        output: &Output,
    ) -> Result<(), Failure> {
        match self {
            Self::List => output.list(&client.get("/api-tokens", &[]).await?, COLUMNS),
            Self::Create {
                name,
                scopes,
                cidrs,
                expires,
            } => {
                let token = body([
                    ("name", Some(name.into())),
                    ("scopes", Some(json!(scopes))),
                    ("cidrs", list(&cidrs)),
                    ("expires_at", expires),
                ]);
                let made = client.post("/api-tokens", &Value::Object(token)).await?;
                output.note("shown once");
                output.done(&made, made["token"].as_str().unwrap_or_default())
            }
            Self::Revoke { id } => {
                confirm(common.yes, &format!("Make token {id} worthless"))?;
                client
                    .delete(&format!("/api-tokens/{}", segment(&id)?))
                    .await?;
                output.done(&json!({"revoked": id}), "the token is worthless")
            }
        }
    }
}
