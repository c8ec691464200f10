//! Users, nodes, plans and regions by id or by name; the name of a region is its code.

use serde_json::Value;

use crate::{client::Client, failure::Failure};

/// What has a name.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    User,
    Node,
    Plan,
    Region,
}

impl Kind {
    const fn parts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::User => ("user", "/users", "username"),
            Self::Node => ("node", "/nodes", "name"),
            Self::Plan => ("plan", "/plans", "name"),
            Self::Region => ("region", "/regions", "code"),
        }
    }
}

/// Returns the id: digits are one, anything else is a name. `name:` in front makes digits a name.
pub(crate) async fn id(client: &Client, kind: Kind, text: &str) -> Result<i64, Failure> {
    let name = text.strip_prefix("name:");
    if name.is_none()
        && let Ok(id) = text.parse()
    {
        return Ok(id);
    }
    let name = name.unwrap_or(text);
    let (what, path, field) = kind.parts();
    let mut after = None::<String>;
    loop {
        let size = ("size", "500".to_owned());
        let mut query = match kind {
            Kind::Plan => vec![size, ("archived", "true".to_owned())],
            Kind::User | Kind::Node => vec![size, ("search", name.to_owned())],
            // All at once.
            Kind::Region => Vec::new(),
        };
        query.extend(after.take().map(|after| ("after", after)));
        let page = client.get(path, &query).await?;
        let items = page["items"].as_array().map_or(&[][..], Vec::as_slice);
        let found = items.iter().find(|item| item[field] == *name);
        if let Some(id) = found.and_then(|item| item["id"].as_i64()) {
            return Ok(id);
        }
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => {
                return Err(Failure::NotFound(format!(
                    "there is no {what} named {name}"
                )));
            }
        }
    }
}

/// Returns the id of one that may be named, as JSON, if it is; `none` clears.
pub(crate) async fn maybe(
    client: &Client,
    kind: Kind,
    text: Option<&str>,
) -> Result<Option<Value>, Failure> {
    match text {
        Some(text) => id_or_none(client, kind, text).await.map(Some),
        None => Ok(None),
    }
}

/// Returns the id of one that may be named, as JSON; `none` clears.
pub(crate) async fn id_or_none(client: &Client, kind: Kind, text: &str) -> Result<Value, Failure> {
    match text {
        "none" => Ok(Value::Null),
        _ => Ok(id(client, kind, text).await?.into()),
    }
}
