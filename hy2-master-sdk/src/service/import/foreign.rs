//! Exports of Marzban and of 3x-ui.

use serde::Deserialize;
use serde_json::Value;

use super::value::{number_of, row_of, whole};
use super::{Row, is_status, limit};
use crate::domain::Timestamp;
use crate::service::ServiceError;
use crate::service::moment::Moment;

#[derive(Deserialize)]
pub(super) struct MarzbanExport {
    /// Each a [`MarzbanUser`], or what is wrong with it is its own mistake.
    pub(super) users: Vec<Value>,
}

/// The fields that are used; others are passed over.
#[derive(Deserialize)]
pub(super) struct MarzbanUser {
    username: String,
    #[serde(default)]
    status: Option<String>,
    /// Seconds since 1970; 0 or null: never.
    #[serde(default, deserialize_with = "whole")]
    expire: Option<i64>,
    /// Bytes; 0 or null: none.
    #[serde(default, deserialize_with = "whole")]
    data_limit: Option<i64>,
    #[serde(default, deserialize_with = "whole")]
    used_traffic: Option<i64>,
    /// `no_reset`, `day`, `week`, `month` or `year`.
    #[serde(default)]
    data_limit_reset_strategy: Option<String>,
    /// Seconds from the first connection.
    #[serde(default, deserialize_with = "whole")]
    on_hold_expire_duration: Option<i64>,
    /// When the time begins without a connection.
    #[serde(default)]
    on_hold_timeout: Value,
    #[serde(default)]
    note: Option<String>,
}

impl MarzbanUser {
    pub(super) fn into_row(self) -> Row {
        let on_hold = self.status.as_deref() == Some("on_hold");
        let unknown = self.status.as_deref().filter(|status| !is_status(status));
        let hold = self
            .on_hold_expire_duration
            .filter(|seconds| on_hold && *seconds > 0);
        let wrong = match unknown {
            Some(status) => Some(("status", format!("there is no status {status:?}"))),
            // Without one the user would have no end at all.
            None if on_hold && hold.is_none() => {
                let message = "who is on_hold has a time from the first connection on";
                Some(("on_hold_expire_duration", message.to_owned()))
            }
            None => negative(&[
                ("expire", self.expire),
                ("data_limit", self.data_limit),
                ("used_traffic", self.used_traffic),
            ]),
        };
        let timeout = Some(self.on_hold_timeout).filter(|at| on_hold && !at.is_null());
        Row {
            username: self.username,
            expires_at: seconds(self.expire),
            // What does not fit is refused with the rest that is too long; left out, it would be no end at all.
            hold_duration_s: hold.map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX)),
            quota_bytes: limit(self.data_limit),
            used_bytes: self.used_traffic,
            renewal: self
                .data_limit_reset_strategy
                .filter(|strategy| strategy != "no_reset")
                .map(|strategy| ("data_limit_reset_strategy", strategy)),
            left_out: timeout.map(|at| {
                let what = format!("{at}: a hold lasts until the first connection");
                ("on_hold_timeout", what)
            }),
            status: self.status,
            note: self.note,
            wrong: wrong.map(|(field, why)| (field.to_owned(), why)),
            ..Row::default()
        }
    }
}

/// Says which of these is below 0. Each is a limit of some kind, and left out it would be none at all.
fn negative(fields: &[(&'static str, Option<i64>)]) -> Option<(&'static str, String)> {
    let found = fields
        .iter()
        .find(|(_, value)| value.is_some_and(|value| value < 0));
    found.map(|(field, _)| (*field, "must not be negative".to_owned()))
}

/// Reads inbounds: `{"obj": [..]}` or the list itself; `settings` is text with JSON in it, or JSON.
pub(super) fn read_three_x_ui(data: Value) -> Result<Vec<Row>, ServiceError> {
    let refuse = |message: String| ServiceError::invalid("data", message);
    let inbounds = match data {
        Value::Object(mut object) => object.remove("obj").unwrap_or(Value::Null),
        other => other,
    };
    let Value::Array(inbounds) = inbounds else {
        return Err(refuse("has no list of inbounds".to_owned()));
    };
    let mut rows = Vec::new();
    for (at, inbound) in inbounds.into_iter().enumerate() {
        let settings = match inbound.get("settings") {
            Some(Value::String(text)) => serde_json::from_str(text)
                .map_err(|error| refuse(format!("[{at}].settings: {error}")))?,
            Some(other) => other.clone(),
            None => continue,
        };
        if !settings.is_object() {
            return Err(refuse(format!("[{at}].settings: expected an object")));
        }
        let clients = settings
            .get("clients")
            .cloned()
            .unwrap_or(Value::Array(Vec::new()));
        let clients: Vec<Value> = serde_path_to_error::deserialize(clients).map_err(|error| {
            refuse(format!(
                "[{at}].settings.clients{}: {}",
                error.path(),
                error.inner()
            ))
        })?;
        let stats = inbound.get("clientStats").and_then(Value::as_array);
        let used = |email: &str| {
            let of = |stat: &Value, key: &str| stat.get(key).and_then(number_of).unwrap_or(0);
            stats
                .into_iter()
                .flatten()
                .find(|stat| stat.get("email").and_then(Value::as_str) == Some(email))
                .map_or(0, |stat| of(stat, "up").saturating_add(of(stat, "down")))
        };
        // Nobody comes in through an inbound that is switched off.
        let enabled = inbound.get("enable").and_then(Value::as_bool) != Some(false);
        rows.extend(clients.into_iter().map(|client| {
            row_of(client, |client: ThreeXUiClient| {
                let used = used(&client.email);
                client.into_row(enabled, used)
            })
        }));
    }
    Ok(rows)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ThreeXUiClient {
    email: String,
    #[serde(default)]
    enable: Option<bool>,
    /// Milliseconds since 1970; 0: never; negative: so long from the first connection.
    #[serde(default, deserialize_with = "whole")]
    expiry_time: Option<i64>,
    /// Bytes, in spite of its name; 0: none.
    #[serde(default, rename = "totalGB", deserialize_with = "whole")]
    total_gb: Option<i64>,
    /// 0: none.
    #[serde(default, deserialize_with = "whole")]
    limit_ip: Option<i64>,
    /// Days after which the quota starts anew; 0: never.
    #[serde(default, deserialize_with = "whole")]
    reset: Option<i64>,
    #[serde(default)]
    comment: Option<String>,
}

impl ThreeXUiClient {
    /// `enabled`: whether its inbound is.
    fn into_row(self, enabled: bool, used: i64) -> Row {
        let wrong = negative(&[
            ("totalGB", self.total_gb),
            ("limitIp", self.limit_ip),
            ("reset", self.reset),
        ]);
        let enabled = enabled && self.enable != Some(false);
        let time = self.expiry_time.unwrap_or(0);
        let hold = (time < 0).then(|| time.unsigned_abs() / 1_000);
        let days = self.reset.filter(|days| *days > 0);
        Row {
            username: self.email,
            status: Some(if enabled { "active" } else { "disabled" }.to_owned()),
            expires_at: (time > 0).then_some(Moment(Timestamp(time))),
            // What does not fit is refused with the rest that is too long; left out, it would be no end at all.
            hold_duration_s: hold.map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX)),
            quota_bytes: limit(self.total_gb),
            used_bytes: Some(used),
            renewal: days.map(|days| ("reset", format!("{days} days"))),
            max_devices: self.limit_ip.filter(|limit| *limit > 0),
            note: self.comment.filter(|note| !note.is_empty()),
            wrong: wrong.map(|(field, why)| (field.to_owned(), why)),
            ..Row::default()
        }
    }
}

fn seconds(at: Option<i64>) -> Option<Moment> {
    at.filter(|at| *at > 0)
        .map(|at| Moment(Timestamp(at.saturating_mul(1_000))))
}
