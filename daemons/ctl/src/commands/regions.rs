//! Regions: where nodes are, and where users are at home.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{body, change};
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
    ("CODE", "code"),
    ("NAME", "name"),
    ("NORTH", "latitude"),
    ("EAST", "longitude"),
];

/// A region.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Code or id
    region: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Regions {
    /// List regions
    List,
    /// Show a region
    Show(Which),
    /// Make a region
    Create {
        /// Code: lower-case letters, digits and "-"
        code: String,
        /// Name for people; absent: the code
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Change a region
    Update {
        #[command(flatten)]
        which: Which,
        /// New code
        #[arg(long, value_name = "CODE")]
        recode: Option<String>,
        /// Name for people
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Delete a region that nothing uses
    Delete(Which),
}

/// Where a region is.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Degrees north and east: 40.7,-74; none clears
    #[arg(long, value_name = "NORTH,EAST", allow_hyphen_values = true)]
    #[arg(value_parser = units::or_none(units::location))]
    location: Option<Value>,
}

impl Place {
    fn body(self) -> Map<String, Value> {
        let Some(location) = self.location else {
            return Map::new();
        };
        body([
            ("latitude", Some(location[0].clone())),
            ("longitude", Some(location[1].clone())),
        ])
    }
}

impl Which {
    async fn path(&self, client: &Client) -> Result<String, Failure> {
        let id = names::id(client, Kind::Region, &self.region).await?;
        Ok(format!("/regions/{id}"))
    }
}

impl Regions {
    pub(crate) async fn run(
        self,
        common: &Common,
        client: &Client,
        output: &Output,
    ) -> Result<(), Failure> {
        match self {
            Self::List => output.list(&client.get("/regions", &[]).await?, COLUMNS),
            Self::Show(which) => output.record(&client.get(&which.path(client).await?, &[]).await?),
            Self::Create { code, name, place } => {
                let mut fields = place.body();
                let name = name.unwrap_or_else(|| code.clone());
                fields.extend(body([
                    ("code", Some(code.into())),
                    ("name", Some(name.into())),
                ]));
                output.record(&client.post("/regions", &Value::Object(fields)).await?)
            }
            Self::Update {
                which,
                recode,
                name,
                place,
            } => {
                let mut fields = place.body();
                fields.extend(body([
                    ("code", recode.map(Value::from)),
                    ("name", name.map(Value::from)),
                ]));
                let fields = change(fields)?;
                output.record(&client.patch(&which.path(client).await?, &fields).await?)
            }
            Self::Delete(which) => {
                confirm(common.yes, &format!("Delete region {}", which.region))?;
                client.delete(&which.path(client).await?).await?;
                output.done(
                    &json!({"deleted": which.region}),
                    &format!("region {} is deleted", which.region),
                )
            }
        }
    }
}
