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

/// Returns the id: digits are one, anything else is a name. `name:` in front makes digits a name, `id:` says that they are
/// none.
///
/// # Errors
///
/// [`Failure::Usage`] of digits that are the name of another: what is done to the wrong one may be for good.
pub(crate) async fn id(client: &Client, kind: Kind, text: &str) -> Result<i64, Failure> {
    let (what, ..) = kind.parts();
    if let Some(digits) = text.strip_prefix("id:") {
        let id = digits.parse();
        return id.map_err(|_| Failure::Usage(format!("{digits:?} is no id of a {what}")));
    }
    if let Ok(id) = text.parse() {
        return match named(client, kind, text).await? {
            Some(other) if other != id => Err(Failure::Usage(format!(
                "{text} is the name of {what} {other}, too: say id:{text} or name:{text}"
            ))),
            _ => Ok(id),
        };
    }
    let name = text.strip_prefix("name:").unwrap_or(text);
    let found = named(client, kind, name).await?;
    found.ok_or_else(|| Failure::NotFound(format!("there is no {what} named {name}")))
}

/// Returns the id of what has a name, if there is such.
async fn named(client: &Client, kind: Kind, name: &str) -> Result<Option<i64>, Failure> {
    let (_, path, field) = kind.parts();
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
            return Ok(Some(id));
        }
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => return Ok(None),
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
