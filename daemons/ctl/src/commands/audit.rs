//! Who did what.

use clap::Subcommand;

use super::{Pages, query};
use crate::{
    client::Client,
    failure::Failure,
    output::{Column, Output},
};

const COLUMNS: &[Column] = &[
    ("SEQ", "seq"),
    ("AT", "at"),
    ("ACTOR", "actor"),
    ("FROM", "address"),
    ("ACTION", "action"),
    ("OBJECT", "object_kind"),
    ("ID", "object_id"),
];

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// List entries, the newest first
    List {
        /// Only by this actor
        #[arg(long)]
        actor: Option<String>,
        /// Only this action: create_user, …
        #[arg(long)]
        action: Option<String>,
        /// Only about this kind of object: user, node, …
        #[arg(long, value_name = "KIND")]
        object: Option<String>,
        /// Only about the object with this id
        #[arg(long, value_name = "ID")]
        id: Option<String>,
        #[command(flatten)]
        pages: Pages,
    },
    /// Recompute the chain and check every signature
    Verify,
}

impl Audit {
    pub(crate) async fn run(self, client: &Client, output: &Output) -> Result<(), Failure> {
        match self {
            Self::List {
                actor,
                action,
                object,
                id,
                pages,
            } => {
                let filters = query([
                    ("actor", actor),
                    ("action", action),
                    ("object_kind", object),
                    ("object_id", id),
                ]);
                pages.show(client, output, "/audit", filters, COLUMNS).await
            }
            Self::Verify => {
                let waiting = output.waiting("verifying");
                let found = client.get("/audit/verify", &[]).await;
                waiting.finish();
                let found = found?;
                if found["intact"] == true {
                    let words = format!(
                        "intact: {} entries, {} signed checkpoints",
                        found["entries"], found["checkpoints"]
                    );
                    return output.done(&found, &words);
                }
                if output.is_json() {
                    output.raw(&found)?;
                }
                Err(Failure::Broken(format!(
                    "the audit log was changed: entry {} does not fit",
                    found["broken_at"]
                )))
            }
        }
    }
}
