//! Users from elsewhere: CSV and JSON of ours, exports of Marzban and of 3x-ui.
//!
//! Limits, ends and names come along; credentials do not: each user gets new ones, and a new
//! subscription. Used traffic is taken off a quota of the user's own; what was used of a plan's is not known here.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::moment::Moment;
use super::page::{MAX_SIZE, PageRequest};
use super::regions::no_region;
use super::user_rules::check_user;
use super::users::{CreateUser, ListUsers, UserView};
use super::{FieldIssue, Service, ServiceError};
use crate::auth::access::Access;
use crate::domain::{RegionId, Timestamp, UserStatus};
use crate::store::{regions, users};

/// Most users of one import.
pub const MAX_USERS: usize = 10_000;

/// Most rows that are named in a report.
const MAX_NAMED: usize = 200;

/// Where the users come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
pub enum ImportFormat {
    /// A header line with any of `username, status, plan_id, home_region, expires_at, hold_duration_s, quota_bytes,
    /// used_bytes, max_devices, max_connections, up_bytes_per_s, down_bytes_per_s, email, telegram_id, note, tags`;
    /// `home_region` is the code of a region.
    #[serde(rename = "csv")]
    Csv,
    /// A list of objects with the same fields, as `users:export` gives it.
    #[serde(rename = "json")]
    Json,
    /// What Marzban's `GET /api/users` gives.
    #[serde(rename = "marzban")]
    Marzban,
    /// What 3x-ui's list of inbounds gives.
    #[serde(rename = "3x-ui")]
    ThreeXUi,
}

/// An import.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportUsers {
    /// Where the users come from.
    pub format: ImportFormat,
    /// The export: text for CSV, otherwise JSON or text with JSON in it.
    #[schema(value_type = Object)]
    pub data: Value,
    /// Plan for all of them, whatever theirs was.
    #[serde(default)]
    pub plan_id: Option<i64>,
}

/// What came of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ImportReport {
    /// Users made, or that would be made.
    pub created: usize,
    /// Names that exist already, or twice in the export.
    pub skipped: Vec<String>,
    /// Names that had to be changed, as `old -> new`: letters that are not allowed became `-`.
    pub renamed: Vec<String>,
    /// Rows that are not valid, and why.
    pub failed: Vec<FieldIssue>,
    /// What users are made without because it is told otherwise here, and how.
    pub ignored: Vec<FieldIssue>,
}

/// A user as it came, before it is checked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Row {
    username: String,
    status: Option<String>,
    plan_id: Option<i64>,
    /// Its code: numbers are of one store only.
    home_region: Option<String>,
    expires_at: Option<Moment>,
    hold_duration_s: Option<u32>,
    quota_bytes: Option<i64>,
    used_bytes: Option<i64>,
    max_devices: Option<i64>,
    max_connections: Option<i64>,
    up_bytes_per_s: Option<i64>,
    down_bytes_per_s: Option<i64>,
    email: Option<String>,
    telegram_id: Option<i64>,
    note: Option<String>,
    tags: Vec<String>,
    /// The field that says how the quota starts anew, and what it says.
    #[serde(skip)]
    renewal: Option<(&'static str, String)>,
}

impl Service {
    /// Makes the users of an export that do not exist yet, all at once or, with an error, none. With `dry_run` nothing
    /// changes, and the report or the error is the one that there would be.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] if the export as a whole cannot be read; rows that are not valid
    /// are in the report. Others as of making a user.
    pub async fn import_users(
        &self,
        access: Access<'_>,
        import: ImportUsers,
        dry_run: bool,
    ) -> Result<ImportReport, ServiceError> {
        let rows = read(import.format, import.data)?;
        if rows.len() > MAX_USERS {
            return Err(ServiceError::invalid(
                "data",
                format!("has more than {MAX_USERS} users"),
            ));
        }
        let regions: HashMap<String, RegionId> = regions::codes(self.store())
            .await?
            .into_iter()
            .map(|(id, code)| (code, id))
            .collect();
        let mut report = ImportReport::default();
        let mut seen = std::collections::HashSet::new();
        let mut wanted = Vec::new();
        for (at, mut row) in rows.into_iter().enumerate() {
            let name = row.username.clone();
            if let Some((field, period)) = row.renewal.clone().filter(|_| import.plan_id.is_none())
            {
                report.ignored.push(FieldIssue::new(
                    format!("users[{at}].{field}"),
                    format!("{period}: a quota starts anew by its plan; import with a plan_id"),
                ));
            }
            let home = match row.home_region.take().filter(|code| !code.is_empty()) {
                Some(code) => match regions.get(&code) {
                    Some(id) => Some(id.0),
                    None => return Err(no_region(format!("users[{at}].home_region"))),
                },
                None => None,
            };
            let (mut user, disabled, renamed) = shape(row, import.plan_id);
            user.home_region_id = home;
            if let Err(ServiceError::Invalid(issues)) = check_user(&user, &format!("users[{at}]."))
            {
                report.failed.extend(issues);
                continue;
            }
            if !seen.insert(user.username.clone()) {
                report.skipped.push(match renamed {
                    true => format!("{name} -> {}", user.username),
                    false => name,
                });
                continue;
            }
            if renamed {
                report.renamed.push(format!("{name} -> {}", user.username));
            }
            wanted.push((at, user, disabled));
        }
        self.make_all(access, &wanted, dry_run, &mut report).await?;
        for names in [&mut report.skipped, &mut report.renamed] {
            names.truncate(MAX_NAMED);
        }
        report.failed.truncate(MAX_NAMED);
        report.ignored.truncate(MAX_NAMED);
        Ok(report)
    }

    async fn make_all(
        &self,
        access: Access<'_>,
        wanted: &[(usize, CreateUser, bool)],
        dry_run: bool,
        report: &mut ImportReport,
    ) -> Result<(), ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        for (at, user, disabled) in wanted {
            if users::name_is_taken(&mut tx, &user.username).await? {
                report.skipped.push(user.username.clone());
                continue;
            }
            let made = self.create_user_in(&mut tx, access, user, now).await;
            let row = made.map_err(|error| error.within(&format!("users[{at}].")))?;
            if *disabled {
                let change = users::UserChange {
                    status: Some(UserStatus::Disabled),
                    ..users::UserChange::default()
                };
                users::update(&mut tx, row.id, None, &change, now).await?;
            }
            report.created += 1;
        }
        match dry_run {
            true => tx.rollback().await?,
            false => tx.commit().await?,
        }
        Ok(())
    }

    /// Writes all users that the caller reaches as `json` or `csv`; returns the media type too.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of the format.
    pub async fn export_users(
        &self,
        access: Access<'_>,
        format: &str,
    ) -> Result<(&'static str, String), ServiceError> {
        if !matches!(format, "json" | "csv") {
            return Err(ServiceError::invalid("format", "must be json or csv"));
        }
        let mut all: Vec<UserView> = Vec::new();
        let mut after = None;
        loop {
            let list = ListUsers {
                page: PageRequest {
                    size: Some(MAX_SIZE),
                    after,
                },
                ..ListUsers::default()
            };
            let page = self.users(access, list).await?;
            all.extend(page.items.into_iter().map(UserView::from));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let codes = regions::codes(self.store()).await?;
        match format {
            "json" => Ok(("application/json", json_of(&all, &codes)?)),
            _ => Ok(("text/csv; charset=utf-8", csv_of(&all, &codes)?)),
        }
    }
}

const COLUMNS: [&str; 16] = [
    "username",
    "status",
    "plan_id",
    "home_region",
    "expires_at",
    "hold_duration_s",
    "quota_bytes",
    "used_bytes",
    "max_devices",
    "max_connections",
    "up_bytes_per_s",
    "down_bytes_per_s",
    "email",
    "telegram_id",
    "note",
    "tags",
];

/// What a JSON export says about users beside the columns.
const OF_EXPORTS: [&str; 11] = [
    "id",
    "uid",
    "status_reason",
    "admin_id",
    "tx_bytes",
    "rx_bytes",
    "chosen_password",
    "online_at",
    "rev",
    "created_at",
    "updated_at",
];

/// Says what of JSON rows is not understood: a misspelt limit would be none.
fn check_json(rows: &Value) -> Result<(), ServiceError> {
    for (at, row) in rows.as_array().into_iter().flatten().enumerate() {
        let known = |name: &str| COLUMNS.contains(&name) || OF_EXPORTS.contains(&name);
        for (name, value) in row.as_object().into_iter().flatten() {
            let wrong = match name.as_str() {
                // As the list of users has it.
                "home_region_id" if value.is_null() => continue,
                "home_region_id" => "a number of one store only: give home_region, its code",
                name if known(name) => continue,
                _ => "unknown field",
            };
            let message = format!("users[{at}].{name}: {wrong}");
            return Err(ServiceError::invalid("data", message));
        }
    }
    Ok(())
}

/// Returns the code of a user's home region.
fn home_of(user: &UserView, codes: &BTreeMap<RegionId, String>) -> Option<String> {
    codes.get(&RegionId(user.home_region_id?)).cloned()
}

/// Writes users as they are shown, with the code of the home region in place of its number.
fn json_of(users: &[UserView], codes: &BTreeMap<RegionId, String>) -> Result<String, ServiceError> {
    let mut text = String::from("[");
    for user in users {
        let mut fields = serde_json::to_value(user).map_err(ServiceError::internal)?;
        if let Some(fields) = fields.as_object_mut() {
            fields.remove("home_region_id");
            fields.insert("home_region".to_owned(), home_of(user, codes).into());
        }
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&fields.to_string());
    }
    text.push(']');
    Ok(text)
}

fn csv_of(users: &[UserView], codes: &BTreeMap<RegionId, String>) -> Result<String, ServiceError> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer
        .write_record(COLUMNS)
        .map_err(ServiceError::internal)?;
    let number = |value: Option<i64>| value.map(|value| value.to_string()).unwrap_or_default();
    for user in users {
        let record = [
            plain(&user.username),
            user.status.clone(),
            number(user.plan_id),
            plain(&home_of(user, codes).unwrap_or_default()),
            user.expires_at
                .map(|at| at.0.to_string())
                .unwrap_or_default(),
            number(user.hold_duration_s),
            number(user.quota_bytes),
            number(Some(user.used_bytes)),
            number(user.max_devices),
            number(user.max_connections),
            number(user.up_bytes_per_s),
            number(user.down_bytes_per_s),
            plain(user.email.as_deref().unwrap_or_default()),
            number(user.telegram_id),
            plain(&user.note),
            plain(&user.tags.join(";")),
        ];
        writer
            .write_record(&record)
            .map_err(ServiceError::internal)?;
    }
    let bytes = writer
        .into_inner()
        .map_err(|error| ServiceError::internal(error.to_string()))?;
    String::from_utf8(bytes).map_err(ServiceError::internal)
}

/// Keeps spreadsheets from taking a text for a formula.
fn plain(text: &str) -> String {
    match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => format!("'{text}"),
        false => text.to_owned(),
    }
}

fn read(format: ImportFormat, data: Value) -> Result<Vec<Row>, ServiceError> {
    let refuse = |message: String| ServiceError::invalid("data", message);
    if format == ImportFormat::Csv {
        let text = data
            .as_str()
            .ok_or_else(|| refuse("must be text for CSV".to_owned()))?;
        return read_csv(text);
    }
    let data = match data {
        Value::String(text) => {
            serde_json::from_str(&text).map_err(|error| refuse(format!("is not JSON: {error}")))?
        }
        other => other,
    };
    match format {
        ImportFormat::Csv | ImportFormat::Json => {
            check_json(&data)?;
            let rows: Vec<Row> = serde_path_to_error::deserialize(data)
                .map_err(|error| refuse(format!("{}: {}", error.path(), error.inner())))?;
            own(rows)
        }
        ImportFormat::Marzban => {
            let export: MarzbanExport = serde_path_to_error::deserialize(data)
                .map_err(|error| refuse(format!("{}: {}", error.path(), error.inner())))?;
            Ok(export
                .users
                .into_iter()
                .map(MarzbanUser::into_row)
                .collect())
        }
        ImportFormat::ThreeXUi => read_three_x_ui(data),
    }
}

/// Checks rows of our own, and takes what was used off the quotas.
fn own(mut rows: Vec<Row>) -> Result<Vec<Row>, ServiceError> {
    for (at, row) in rows.iter_mut().enumerate() {
        if let Some(status) = &row.status
            && UserStatus::ALL.iter().all(|it| it.as_str() != status)
        {
            let message = format!("users[{at}].status: there is no status {status:?}");
            return Err(ServiceError::invalid("data", message));
        }
        if let Some(used) = row.used_bytes.filter(|used| *used > 0) {
            row.quota_bytes = left(row.quota_bytes, used);
        }
        // Who has started has an end instead.
        if row.expires_at.is_some() {
            row.hold_duration_s = None;
        }
    }
    Ok(rows)
}

fn read_csv(text: &str) -> Result<Vec<Row>, ServiceError> {
    let refuse = |message: String| ServiceError::invalid("data", message);
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let header = reader
        .headers()
        .map_err(|error| refuse(error.to_string()))?
        .clone();
    if let Some(unknown) = header.iter().find(|name| !COLUMNS.contains(name)) {
        return Err(refuse(format!("has an unknown column {unknown:?}")));
    }
    if !header.iter().any(|name| name == "username") {
        return Err(refuse("has no column username".to_owned()));
    }
    let mut rows = Vec::new();
    for (at, record) in reader.records().enumerate() {
        let record = record.map_err(|error| refuse(format!("users[{at}]: {error}")))?;
        let field = |name: &str| {
            let index = header.iter().position(|column| column == name)?;
            let text = record.get(index)?.trim();
            let text = text.strip_prefix('\'').unwrap_or(text);
            Some(text.to_owned()).filter(|text| !text.is_empty())
        };
        let number = |name: &str| {
            let parse = |text: String| text.parse::<i64>();
            field(name)
                .map(parse)
                .transpose()
                .map_err(|_| refuse(format!("users[{at}].{name}: not a whole number")))
        };
        let expires_at = match field("expires_at") {
            Some(text) => Some(serde_json::from_value(Value::String(text)).map_err(|_| {
                refuse(format!("users[{at}].expires_at: not a moment in RFC 3339"))
            })?),
            None => None,
        };
        rows.push(Row {
            username: field("username").unwrap_or_default(),
            status: field("status"),
            plan_id: number("plan_id")?,
            home_region: field("home_region"),
            expires_at,
            hold_duration_s: match number("hold_duration_s")? {
                Some(seconds) => Some(u32::try_from(seconds).map_err(|_| {
                    refuse(format!(
                        "users[{at}].hold_duration_s: not a length in seconds"
                    ))
                })?),
                None => None,
            },
            quota_bytes: number("quota_bytes")?,
            used_bytes: number("used_bytes")?,
            max_devices: number("max_devices")?,
            max_connections: number("max_connections")?,
            up_bytes_per_s: number("up_bytes_per_s")?,
            down_bytes_per_s: number("down_bytes_per_s")?,
            email: field("email"),
            telegram_id: number("telegram_id")?,
            note: field("note"),
            tags: field("tags")
                .map(|tags| tags.split(';').map(str::to_owned).collect())
                .unwrap_or_default(),
            renewal: None,
        });
    }
    own(rows)
}

#[derive(Deserialize)]
struct MarzbanExport {
    users: Vec<MarzbanUser>,
}

/// The fields that are used; others are passed over.
#[derive(Deserialize)]
struct MarzbanUser {
    username: String,
    #[serde(default)]
    status: Option<String>,
    /// Seconds since 1970; 0 or null: never.
    #[serde(default)]
    expire: Option<i64>,
    /// Bytes; 0 or null: none.
    #[serde(default)]
    data_limit: Option<i64>,
    #[serde(default)]
    used_traffic: Option<i64>,
    /// `no_reset`, `day`, `week`, `month` or `year`.
    #[serde(default)]
    data_limit_reset_strategy: Option<String>,
    /// Seconds from the first connection.
    #[serde(default)]
    on_hold_expire_duration: Option<i64>,
    #[serde(default)]
    note: Option<String>,
}

impl MarzbanUser {
    fn into_row(self) -> Row {
        let on_hold = self.status.as_deref() == Some("on_hold");
        let hold = self
            .on_hold_expire_duration
            .filter(|seconds| on_hold && *seconds > 0);
        Row {
            username: self.username,
            expires_at: seconds(self.expire),
            hold_duration_s: hold.and_then(|seconds| u32::try_from(seconds).ok()),
            quota_bytes: left(self.data_limit, self.used_traffic.unwrap_or(0)),
            renewal: self
                .data_limit_reset_strategy
                .filter(|strategy| strategy != "no_reset")
                .map(|strategy| ("data_limit_reset_strategy", strategy)),
            status: self.status,
            note: self.note,
            ..Row::default()
        }
    }
}

/// Reads inbounds: `{"obj": [..]}` or the list itself; `settings` is text with JSON in it, or JSON.
fn read_three_x_ui(data: Value) -> Result<Vec<Row>, ServiceError> {
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
        let clients = settings
            .get("clients")
            .cloned()
            .unwrap_or(Value::Array(Vec::new()));
        let clients: Vec<ThreeXUiClient> =
            serde_path_to_error::deserialize(clients).map_err(|error| {
                refuse(format!(
                    "[{at}].settings.clients{}: {}",
                    error.path(),
                    error.inner()
                ))
            })?;
        let stats = inbound.get("clientStats").and_then(Value::as_array);
        let used = |email: &str| {
            let of = |stat: &Value, key: &str| stat.get(key).and_then(Value::as_i64).unwrap_or(0);
            stats
                .into_iter()
                .flatten()
                .find(|stat| stat.get("email").and_then(Value::as_str) == Some(email))
                .map_or(0, |stat| of(stat, "up").saturating_add(of(stat, "down")))
        };
        // Nobody comes in through an inbound that is switched off.
        let enabled = inbound.get("enable").and_then(Value::as_bool) != Some(false);
        for mut client in clients {
            client.enable &= enabled;
            let used = used(&client.email);
            rows.push(client.into_row(used));
        }
    }
    Ok(rows)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ThreeXUiClient {
    email: String,
    #[serde(default = "yes")]
    enable: bool,
    /// Milliseconds since 1970; 0: never; negative: so long from the first connection.
    #[serde(default)]
    expiry_time: i64,
    /// Bytes, in spite of its name; 0: none.
    #[serde(default, rename = "totalGB")]
    total_gb: i64,
    #[serde(default)]
    limit_ip: i64,
    /// Days after which the quota starts anew; 0: never.
    #[serde(default)]
    reset: i64,
    #[serde(default)]
    comment: String,
}

const fn yes() -> bool {
    true
}

impl ThreeXUiClient {
    fn into_row(self, used: i64) -> Row {
        let hold = (self.expiry_time < 0).then(|| self.expiry_time.unsigned_abs() / 1_000);
        Row {
            username: self.email,
            status: Some(if self.enable { "active" } else { "disabled" }.to_owned()),
            expires_at: (self.expiry_time > 0).then_some(Moment(Timestamp(self.expiry_time))),
            hold_duration_s: hold.and_then(|seconds| u32::try_from(seconds).ok()),
            quota_bytes: left(Some(self.total_gb), used),
            renewal: (self.reset > 0).then(|| ("reset", format!("{} days", self.reset))),
            max_devices: Some(self.limit_ip).filter(|limit| *limit > 0),
            note: Some(self.comment).filter(|note| !note.is_empty()),
            ..Row::default()
        }
    }
}

fn seconds(at: Option<i64>) -> Option<Moment> {
    at.filter(|at| *at > 0)
        .map(|at| Moment(Timestamp(at.saturating_mul(1_000))))
}

/// Returns what is left of a quota; a user who has used all of it keeps a byte, because no quota
/// would be no limit.
fn left(quota: Option<i64>, used: i64) -> Option<i64> {
    quota
        .filter(|quota| *quota > 0)
        .map(|quota| quota.saturating_sub(used.max(0)).max(1))
}

/// Makes a user of a row: the user, whether it is disabled, whether its name was changed.
fn shape(row: Row, plan_id: Option<i64>) -> (CreateUser, bool, bool) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@-".contains(c);
    let name: String = row
        .username
        .trim()
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .take(64)
        .collect();
    let renamed = name != row.username;
    let disabled = row.status.as_deref() == Some("disabled");
    let user = CreateUser {
        username: name,
        plan_id: plan_id.or(row.plan_id),
        expires_at: row.expires_at,
        hold_duration_s: row.hold_duration_s,
        quota_bytes: row.quota_bytes,
        max_devices: row.max_devices,
        max_connections: row.max_connections,
        up_bytes_per_s: row.up_bytes_per_s,
        down_bytes_per_s: row.down_bytes_per_s,
        email: row.email,
        telegram_id: row.telegram_id,
        note: row.note.unwrap_or_default(),
        tags: row.tags,
        ..CreateUser::default()
    };
    (user, disabled, renamed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn marzban_users_keep_name_end_and_what_is_left() {
        let data = json!({"total": 3, "users": [
            {"username": "ann", "status": "active", "expire": 1_900_000_000, "data_limit": 100,
             "used_traffic": 30, "proxies": {"vless": {"id": "x"}}, "note": "n"},
            {"username": "bob", "status": "disabled", "expire": 0, "data_limit": 0},
            {"username": "cy", "status": "on_hold", "expire": null, "data_limit": 5,
             "used_traffic": 9, "on_hold_expire_duration": 86400},
        ]});
        let rows = read(ImportFormat::Marzban, data).unwrap();
        assert_eq!(rows[0].quota_bytes, Some(70));
        assert_eq!(
            rows[0].expires_at,
            Some(Moment(Timestamp(1_900_000_000_000)))
        );
        assert_eq!((rows[1].expires_at, rows[1].quota_bytes), (None, None));
        assert!(shape(rows[1].clone(), None).1, "disabled");
        assert_eq!(
            (rows[2].hold_duration_s, rows[2].quota_bytes),
            (Some(86_400), Some(1))
        );
    }

    #[test]
    fn three_x_ui_clients_come_from_settings_within_text() {
        let settings = json!({"clients": [
            {"email": "ann/1", "enable": true, "expiryTime": 1_900_000_000_000_i64,
             "totalGB": 1000, "limitIp": 2, "comment": "c", "id": "x", "flow": ""},
            {"email": "bob", "enable": false, "expiryTime": -86_400_000, "totalGB": 0},
        ]});
        let data = json!({"success": true, "obj": [
            {"id": 2, "enable": false, "settings": {"clients": [
                {"email": "cy", "enable": true, "reset": 30}]}},
            {"id": 1, "settings": settings.to_string(),
             "clientStats": [{"email": "ann/1", "up": 100, "down": 200}]},
        ]});
        let rows = read(ImportFormat::ThreeXUi, data).unwrap();
        let (cy, disabled, _) = shape(rows[0].clone(), None);
        assert_eq!((cy.username.as_str(), disabled), ("cy", true));
        let renewal = Some(("reset", "30 days".to_owned()));
        assert_eq!((&rows[0].renewal, &rows[1].renewal), (&renewal, &None));
        let (ann, disabled, renamed) = shape(rows[1].clone(), Some(7));
        assert_eq!(
            (ann.username.as_str(), renamed, disabled),
            ("ann-1", true, false)
        );
        assert_eq!(
            (ann.quota_bytes, ann.max_devices, ann.plan_id),
            (Some(700), Some(2), Some(7))
        );
        let (bob, disabled, _) = shape(rows[2].clone(), None);
        assert_eq!((bob.hold_duration_s, disabled), (Some(86_400), true));
    }

    #[test]
    fn csv_names_what_it_does_not_understand() {
        let read = |text: &str| read(ImportFormat::Csv, json!(text));
        let rows = read("username,quota_bytes,tags\nann,5,a;b\n'=x,,\n").unwrap();
        assert_eq!((rows[0].quota_bytes, rows[0].tags.len()), (Some(5), 2));
        assert_eq!(rows[1].username, "=x");
        for (text, part) in [
            ("name\nann\n", "unknown column"),
            ("note\nann\n", "no column username"),
            ("username,quota_bytes\nann,lots\n", "users[0].quota_bytes"),
            ("username,expires_at\nann,soon\n", "users[0].expires_at"),
            ("username,status\nann,bogus\n", "users[0].status"),
        ] {
            let ServiceError::Invalid(issues) = read(text).unwrap_err() else {
                panic!("{text}")
            };
            assert!(issues[0].message.contains(part), "{:?}", issues[0]);
        }
    }

    #[test]
    fn json_of_ours_comes_back_as_it_left_and_misspelt_names_do_not() {
        let read = |data: Value| read(ImportFormat::Json, data);
        let rows = read(
            json!([{"username": "ann", "status": "limited", "plan_id": 3, "telegram_id": 9,
            "quota_bytes": 100, "used_bytes": 100, "tx_bytes": 60, "rev": 4}]),
        )
        .unwrap();
        let (ann, _, _) = shape(rows[0].clone(), None);
        assert_eq!(
            (ann.plan_id, ann.telegram_id, ann.quota_bytes),
            (Some(3), Some(9), Some(1)),
            "a byte is left: none would be no limit"
        );
        for (row, part) in [
            (
                json!({"username": "ann", "quota": 5}),
                "users[0].quota: unknown field",
            ),
            (
                json!({"username": "ann", "home_region_id": 4}),
                "users[0].home_region_id: a number of one store only",
            ),
            (
                json!({"username": "ann", "status": "bogus"}),
                "users[0].status",
            ),
        ] {
            let ServiceError::Invalid(issues) = read(json!([row])).unwrap_err() else {
                panic!("{part}")
            };
            assert!(issues[0].message.contains(part), "{:?}", issues[0]);
        }
    }

    #[test]
    fn every_field_of_an_export_is_known() {
        let schema = serde_json::to_value(<UserView as utoipa::PartialSchema>::schema()).unwrap();
        let fields = schema["properties"].as_object().unwrap();
        assert!(fields.len() > 20);
        assert!(fields.contains_key("home_region_id"), "it leaves as a code");
        for name in fields.keys().map(String::as_str) {
            let name = match name {
                "home_region_id" => "home_region",
                name => name,
            };
            assert!(
                COLUMNS.contains(&name) || OF_EXPORTS.contains(&name),
                "{name}"
            );
        }
    }

    #[test]
    fn formulas_leave_as_text() {
        assert_eq!(plain("=1+1"), "'=1+1");
        assert_eq!(plain("ann"), "ann");
    }
}
