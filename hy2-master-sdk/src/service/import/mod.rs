//! Users from elsewhere: CSV and JSON of ours, exports of Marzban and of 3x-ui.
//!
//! Limits, ends, names and what was used of the quota come along; credentials do not: each user gets new ones, and a
//! new subscription.

mod foreign;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod names;
mod ours;
mod value;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use self::foreign::{MarzbanExport, MarzbanUser, read_three_x_ui};
use self::names::{Names, spelt};
use self::ours::{check_json, csv_of, json_of, own, read_csv};
use self::value::{row_of, whole, whole_u32};
use super::moment::Moment;
use super::page::{MAX_SIZE, PageRequest};
use super::regions::no_region;
use super::user_rules::{check_reseller_room, check_user};
use super::users::{CreateUser, ListUsers, Past, UserView};
use super::{FieldIssue, Service, ServiceError};
use crate::auth::access::Access;
use crate::domain::{RegionId, Timestamp, UserStatus};
use crate::store::regions;

/// Most users of one import.
pub const MAX_USERS: usize = 10_000;

/// Most bytes that a user comes with as used, 1 PiB: sums of all users have room for them.
const MAX_USED: i64 = 1 << 50;

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
    /// The export: text for CSV, otherwise JSON or text with JSON in it. In CSV `;` separates tags, with `\;` and `\\` for a
    /// semicolon and a backslash in one; an apostrophe in front of `=`, `+`, `-`, `@`, a tab, a line end or another
    /// apostrophe is taken away, which exports put there for spreadsheets; outer spaces count in notes and tags only.
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
    /// Names that had to be changed, as `old -> new`: letters that are not allowed became `-`, and who would have had
    /// somebody else's name by that has `-2` behind it, or `-3` and so on. The old name is in the note if that was empty.
    pub renamed: Vec<String>,
    /// Rows that are not valid, and why.
    pub failed: Vec<FieldIssue>,
    /// What users are made without because it is told otherwise here, and how.
    pub ignored: Vec<FieldIssue>,
    /// How many there are of each; the lists name the first 200.
    pub counts: ImportCounts,
}

/// How many rows of an import were not simply made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "as the lists of [`ImportReport`]")]
pub struct ImportCounts {
    pub skipped: usize,
    pub renamed: usize,
    pub failed: usize,
    pub ignored: usize,
}

/// A user as it came, before it is checked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Row {
    username: String,
    status: Option<String>,
    #[serde(deserialize_with = "whole")]
    plan_id: Option<i64>,
    /// Its code: numbers are of one store only.
    home_region: Option<String>,
    expires_at: Option<Moment>,
    #[serde(deserialize_with = "whole_u32")]
    hold_duration_s: Option<u32>,
    #[serde(deserialize_with = "whole")]
    quota_bytes: Option<i64>,
    #[serde(deserialize_with = "whole")]
    used_bytes: Option<i64>,
    #[serde(deserialize_with = "whole")]
    max_devices: Option<i64>,
    #[serde(deserialize_with = "whole")]
    max_connections: Option<i64>,
    #[serde(deserialize_with = "whole")]
    up_bytes_per_s: Option<i64>,
    #[serde(deserialize_with = "whole")]
    down_bytes_per_s: Option<i64>,
    email: Option<String>,
    #[serde(deserialize_with = "whole")]
    telegram_id: Option<i64>,
    note: Option<String>,
    tags: Vec<String>,
    /// The field that says how the quota starts anew, and what it says.
    #[serde(skip)]
    renewal: Option<(&'static str, String)>,
    /// A field that nothing here stands for, and what is left out with it.
    #[serde(skip)]
    left_out: Option<(&'static str, String)>,
    /// The field for which the user is not made, and why; without a field it is the whole row.
    #[serde(skip)]
    wrong: Option<(String, String)>,
}

/// A user to be made.
#[derive(Debug)]
struct Arrival {
    /// Which row.
    at: usize,
    /// The name as it came.
    name: String,
    user: CreateUser,
    past: Past,
}

impl Arrival {
    /// Returns whether the name is another here, and not only without outer spaces.
    fn is_renamed(&self) -> bool {
        spelt(&self.name) != self.name.trim()
    }
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
        let now = self.now();
        let mut report = ImportReport::default();
        let wanted = sorted(rows, import.plan_id, &regions, now, &mut report)?;
        self.make_all(access, wanted, dry_run, &mut report).await?;
        report.counts = ImportCounts {
            skipped: report.skipped.len(),
            renamed: report.renamed.len(),
            failed: report.failed.len(),
            ignored: report.ignored.len(),
        };
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
        wanted: Vec<Arrival>,
        dry_run: bool,
        report: &mut ImportReport,
    ) -> Result<(), ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let mut names = Names::default();
        for one in wanted {
            let free = names.take(&mut tx, &one).await?;
            let Some(one) = named(one, free, report) else {
                continue;
            };
            let made = self.create_user_in(&mut tx, access, &one.user, &one.past, now);
            let at = one.at;
            made.await
                .map_err(|error| error.within(&format!("users[{at}].")))?;
            report.created += 1;
        }
        if let Some(owner) = access.owner()
            && report.created > 0
        {
            check_reseller_room(&mut tx, owner).await?;
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

/// Tells the users to make, in the order in which they get their names, from rows that make none, each of which is in the
/// report.
fn sorted(
    rows: Vec<Row>,
    plan_id: Option<i64>,
    regions: &HashMap<String, RegionId>,
    now: Timestamp,
    report: &mut ImportReport,
) -> Result<Vec<Arrival>, ServiceError> {
    let mut wanted = Vec::new();
    for (at, mut row) in rows.into_iter().enumerate() {
        if let Some((field, why)) = row.wrong.take() {
            let dot = if field.is_empty() { "" } else { "." };
            let issue = FieldIssue::new(format!("users[{at}]{dot}{field}"), why);
            report.failed.push(issue);
            continue;
        }
        if let Some((field, what)) = row.left_out.take() {
            let issue = FieldIssue::new(format!("users[{at}].{field}"), what);
            report.ignored.push(issue);
        }
        // A hold of somebody whose time is over would never start.
        if row.expires_at.is_some_and(|end| end.0 <= now) {
            row.hold_duration_s = None;
        }
        let name = row.username.clone();
        if let Some((field, period)) = row.renewal.clone().filter(|_| plan_id.is_none()) {
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
        let (mut user, past) = shape(row, plan_id);
        user.home_region_id = home;
        if let Err(ServiceError::Invalid(issues)) = check_user(&user, &format!("users[{at}].")) {
            report.failed.extend(issues);
            continue;
        }
        if past.used > MAX_USED {
            let message = format!("must be at most {MAX_USED} (1 PiB)");
            let issue = FieldIssue::new(format!("users[{at}].used_bytes"), message);
            report.failed.push(issue);
            continue;
        }
        wanted.push(Arrival {
            at,
            name,
            user,
            past,
        });
    }
    // Who can have the name as it is has it.
    wanted.sort_by_key(Arrival::is_renamed);
    Ok(wanted)
}

/// Gives a user the name that was free for it; without one it is in the report.
fn named(mut one: Arrival, free: Option<String>, report: &mut ImportReport) -> Option<Arrival> {
    let Some(free) = free else {
        report.skipped.push(match one.is_renamed() {
            true => format!("{} -> {}", one.name, one.user.username),
            false => one.name,
        });
        return None;
    };
    one.user.username = free;
    if one.user.username != one.name {
        let renamed = format!("{} -> {}", one.name, one.user.username);
        report.renamed.push(renamed);
    }
    if one.is_renamed() && one.user.note.is_empty() {
        one.user.note = names::as_note(&one.name);
    }
    Some(one)
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
            let rows: Vec<Value> = serde_path_to_error::deserialize(data)
                .map_err(|error| refuse(format!("{}: {}", error.path(), error.inner())))?;
            own(rows.into_iter().map(|row| row_of(row, |row| row)).collect())
        }
        ImportFormat::Marzban => {
            let export: MarzbanExport = serde_path_to_error::deserialize(data)
                .map_err(|error| refuse(format!("{}: {}", error.path(), error.inner())))?;
            let rows = export.users.into_iter();
            Ok(rows.map(|row| row_of(row, MarzbanUser::into_row)).collect())
        }
        ImportFormat::ThreeXUi => read_three_x_ui(data),
    }
}

/// Returns whether a user may come with that status: no deleted one does.
fn is_status(word: &str) -> bool {
    let mut known = UserStatus::ALL
        .iter()
        .filter(|status| **status != UserStatus::Deleted);
    known.any(|status| status.as_str() == word)
}

/// Returns a quota of another program: 0 is none.
fn limit(quota: Option<i64>) -> Option<i64> {
    quota.filter(|quota| *quota > 0)
}

/// Makes a user of a row, and what it was before.
fn shape(row: Row, plan_id: Option<i64>) -> (CreateUser, Past) {
    // Who is let in no more for a reason that did not come along is not let in again by moving.
    let reason = match row.status.as_deref() {
        Some("disabled") => Some("disabled"),
        Some("expired") if row.expires_at.is_none() => Some("expired"),
        Some("limited") if row.quota_bytes.is_none() => Some("limited"),
        _ => None,
    };
    let past = Past {
        disabled: reason.map(|status| format!("{status} where the user came from")),
        used: row.used_bytes.unwrap_or(0).max(0),
    };
    let user = CreateUser {
        username: spelt(&row.username),
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
    (user, past)
}

#[cfg(test)]
mod tests {
    use super::ours::{COLUMNS, OF_EXPORTS, bare, joined, plain, split};
    use super::*;
    use serde_json::json;

    #[test]
    fn marzban_users_keep_name_end_quota_and_what_was_used() {
        let data = json!({"total": 3, "users": [
            {"username": "ann", "status": "active", "expire": 1_900_000_000, "data_limit": 100,
             "used_traffic": 30, "proxies": {"vless": {"id": "x"}}, "note": "n"},
            {"username": "bob", "status": "disabled", "expire": 0, "data_limit": 0},
            {"username": "cy", "status": "on_hold", "expire": null, "data_limit": 5,
             "used_traffic": 9, "on_hold_expire_duration": 86400},
        ]});
        let rows = read(ImportFormat::Marzban, data).unwrap();
        assert_eq!(
            (rows[0].quota_bytes, rows[0].used_bytes),
            (Some(100), Some(30))
        );
        assert_eq!(
            rows[0].expires_at,
            Some(Moment(Timestamp(1_900_000_000_000)))
        );
        assert_eq!((rows[1].expires_at, rows[1].quota_bytes), (None, None));
        let is_out = |row: &Row| shape(row.clone(), None).1.disabled.is_some();
        assert!(is_out(&rows[1]), "disabled");
        for (status, end, quota, out) in [
            ("expired", None, Some(1), true),
            ("expired", Some(Moment(Timestamp(1))), None, false),
            ("limited", Some(Moment(Timestamp(1))), None, true),
            ("limited", None, Some(1), false),
            ("active", None, None, false),
        ] {
            let row = Row {
                status: Some(status.to_owned()),
                expires_at: end,
                quota_bytes: quota,
                ..rows[0].clone()
            };
            assert_eq!(is_out(&row), out, "{status}");
        }
        assert_eq!(
            (rows[2].hold_duration_s, rows[2].quota_bytes),
            (Some(86_400), Some(5))
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
        let (cy, past) = shape(rows[0].clone(), None);
        let reason = Some("disabled where the user came from");
        assert_eq!(
            (cy.username.as_str(), past.disabled.as_deref()),
            ("cy", reason)
        );
        let renewal = Some(("reset", "30 days".to_owned()));
        assert_eq!((&rows[0].renewal, &rows[1].renewal), (&renewal, &None));
        let (ann, past) = shape(rows[1].clone(), Some(7));
        assert_eq!((ann.username.as_str(), past.disabled), ("ann-1", None));
        assert_eq!(
            (ann.quota_bytes, past.used, ann.max_devices, ann.plan_id),
            (Some(1000), 300, Some(2), Some(7))
        );
        let (bob, past) = shape(rows[2].clone(), None);
        assert_eq!(
            (bob.hold_duration_s, past.disabled.is_some()),
            (Some(86_400), true)
        );
    }

    #[test]
    fn csv_names_what_it_does_not_understand() {
        let read = |text: &str| read(ImportFormat::Csv, json!(text));
        let rows = read("username,quota_bytes,tags\nann,5,a;b\n'=x,,\n").unwrap();
        assert_eq!((rows[0].quota_bytes, rows[0].tags.len()), (Some(5), 2));
        assert_eq!(rows[1].username, "=x");
        for (text, field, why) in [
            (
                "username,quota_bytes\nann,lots\nbob,5\n",
                "quota_bytes",
                "not a whole number",
            ),
            (
                "username,expires_at\nann,soon\nbob,\n",
                "expires_at",
                "not a moment in RFC 3339",
            ),
        ] {
            let rows = read(text).unwrap();
            let wrong = Some((field.to_owned(), why.to_owned()));
            assert_eq!((&rows[0].wrong, &rows[1].wrong), (&wrong, &None));
        }
        for (text, part) in [
            ("name\nann\n", "unknown column"),
            ("note\nann\n", "no column username"),
            (
                "username,note,username\nann,,bob\n",
                "has the column username twice",
            ),
            ("username,status\nann,bogus\n", "users[0].status"),
            ("username,status\nann,deleted\n", "users[0].status"),
            (
                "username,note\nann,\"one\nbob,two\n",
                "line 2: a quote is not closed",
            ),
            (
                "username,note\r\nann,\"a\r\nb\"\r\nbob,a \"b\"\r\n",
                "line 4: a quote within",
            ),
            (
                "username,note\nann,\"one\nbob,\"two\"\n",
                "line 3: something follows the quote that closes the field begun in line 2",
            ),
            ("username,note\nann,\"one\" \n", "line 2: something follows"),
            ("\"username\nann\n", "line 1: a quote is not closed"),
        ] {
            let ServiceError::Invalid(issues) = read(text).unwrap_err() else {
                panic!("{text}")
            };
            assert!(issues[0].message.contains(part), "{:?}", issues[0]);
        }
    }

    #[test]
    fn csv_takes_quotes_where_they_belong() {
        let text = "\u{feff}\"username\",note\r\nann,\"a \"\"b\"\",\nc\"\rbob,\"\"\ncy,\"\"\"\"";
        let rows = read(ImportFormat::Csv, json!(text)).unwrap();
        let read: Vec<_> = rows
            .iter()
            .map(|row| (row.username.as_str(), row.note.as_deref()))
            .collect();
        let want = [
            ("ann", Some("a \"b\",\nc")),
            ("bob", None),
            ("cy", Some("\"")),
        ];
        assert_eq!(read, want);
    }

    #[test]
    fn inbounds_of_3x_ui_whose_settings_are_no_object_are_named() {
        for settings in [json!([]), json!("[]"), json!(1), json!("null"), json!(null)] {
            let data = json!({"obj": [{"settings": "{}"}, {"settings": settings}]});
            let ServiceError::Invalid(issues) = read(ImportFormat::ThreeXUi, data).unwrap_err()
            else {
                panic!("{settings}")
            };
            assert_eq!(issues[0].message, "[1].settings: expected an object");
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
        let (ann, past) = shape(rows[0].clone(), None);
        assert_eq!(
            (ann.plan_id, ann.telegram_id, ann.quota_bytes, past.used),
            (Some(3), Some(9), Some(100), 100)
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
        // The sign of old exports is taken away, an apostrophe of one's own is not.
        assert_eq!((bare("'=1"), bare("'tis"), bare("'")), ("=1", "'tis", "'"));
        for text in ["'tis", "'", "''", "'=x", "''=x", "\tx", "'\rx", " =x", ""] {
            assert_eq!(bare(&plain(text)), text);
        }
    }

    #[test]
    fn tags_share_a_field_whatever_is_in_them() {
        assert_eq!(split("a;b\\c; d"), ["a", "b\\c", " d"]);
        let tags = ["a;b", ";", "\\", "\\;", "\\\\", " x ", "a"].map(str::to_owned);
        assert_eq!(split(&joined(&tags)), tags);
    }
}
