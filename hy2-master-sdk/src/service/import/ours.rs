//! Our own shapes of users that leave and come: JSON and CSV.

use std::collections::BTreeMap;

use serde_json::Value;

use super::value::{NO_LENGTH, failed, whole_of};
use super::{Row, is_status};
use crate::domain::RegionId;
use crate::service::ServiceError;
use crate::service::users::UserView;

/// The columns of a CSV export; the names are those of the users as REST shows them.
pub(super) const COLUMNS: [&str; 16] = [
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
pub(super) const OF_EXPORTS: [&str; 11] = [
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
pub(super) fn check_json(rows: &Value) -> Result<(), ServiceError> {
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
pub(super) fn json_of(
    users: &[UserView],
    codes: &BTreeMap<RegionId, String>,
) -> Result<String, ServiceError> {
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

pub(super) fn csv_of(
    users: &[UserView],
    codes: &BTreeMap<RegionId, String>,
) -> Result<String, ServiceError> {
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
            plain(&joined(&user.tags)),
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

/// What spreadsheets take for the beginning of a formula, and the mark in front of it.
const GUARDED: [char; 7] = ['=', '+', '-', '@', '\t', '\r', '\''];

/// Keeps spreadsheets from taking a text for a formula, by an apostrophe in front of it.
pub(super) fn plain(text: &str) -> String {
    let own_mark = bare(text) != text;
    match own_mark || (text.starts_with(GUARDED) && !text.starts_with('\'')) {
        true => format!("'{text}"),
        false => text.to_owned(),
    }
}

/// Takes away the apostrophe of [`plain`]; any other is the text's own.
pub(super) fn bare(text: &str) -> &str {
    match text.strip_prefix('\'') {
        Some(rest) if rest.starts_with(GUARDED) => rest,
        _ => text,
    }
}

/// Puts tags in one field, with `;` between them; in a tag `\;` is a semicolon and `\\` a backslash.
pub(super) fn joined(tags: &[String]) -> String {
    let escape = |tag: &String| tag.replace('\\', "\\\\").replace(';', "\\;");
    tags.iter().map(escape).collect::<Vec<_>>().join(";")
}

/// Reads what [`joined`] wrote; a backslash in front of anything else is itself.
pub(super) fn split(text: &str) -> Vec<String> {
    let mut tags = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let escaped = (letter == '\\')
            .then(|| letters.next_if(|next| matches!(next, ';' | '\\')))
            .flatten();
        if letter == ';' {
            tags.push(String::new());
        } else if let Some(tag) = tags.last_mut() {
            tag.push(escaped.unwrap_or(letter));
        }
    }
    tags
}

/// Checks rows of our own.
pub(super) fn own(mut rows: Vec<Row>) -> Result<Vec<Row>, ServiceError> {
    for (at, row) in rows.iter_mut().enumerate() {
        if let Some(status) = &row.status
            && !is_status(status)
        {
            let message = format!("users[{at}].status: there is no status {status:?}");
            return Err(ServiceError::invalid("data", message));
        }
        if row.used_bytes.is_some_and(|used| used < 0) && row.wrong.is_none() {
            *row = failed("used_bytes".to_owned(), "must not be negative".to_owned());
        }
        // Who has started has an end instead; who has not may have one beside it.
        if row.expires_at.is_some() && row.status.as_deref() != Some("on_hold") {
            row.hold_duration_s = None;
        }
    }
    Ok(rows)
}

/// Checks that quotes stand where RFC 4180 has them. The reader takes them as it can: one too many makes the
/// rows behind it a part of its field.
fn check_quotes(text: &str) -> Result<(), String> {
    #[derive(PartialEq)]
    enum At {
        Begin,
        Plain,
        Quoted,
        Closed,
    }
    let (mut at, mut line, mut opened) = (At::Begin, 1, 1);
    // Without the mark of UTF-8 that spreadsheets put first.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut bytes = text.bytes().peekable();
    while let Some(byte) = bytes.next() {
        at = match (at, byte) {
            (At::Begin, b'"') => {
                opened = line;
                At::Quoted
            }
            (At::Closed, b'"') => At::Quoted,
            (At::Quoted, b'"') => At::Closed,
            (At::Quoted, _) => At::Quoted,
            (_, b',' | b'\r' | b'\n') => At::Begin,
            (At::Begin, _) => At::Plain,
            (At::Plain, b'"') => {
                return Err(format!(
                    "line {line}: a quote within a field that does not begin with one"
                ));
            }
            (At::Plain, _) => At::Plain,
            (At::Closed, _) => {
                return Err(format!(
                    "line {line}: something follows the quote that closes the field begun in line {opened}"
                ));
            }
        };
        if byte == b'\n' || (byte == b'\r' && bytes.peek() != Some(&b'\n')) {
            line += 1;
        }
    }
    match at {
        At::Quoted => Err(format!("line {opened}: a quote is not closed")),
        _ => Ok(()),
    }
}

pub(super) fn read_csv(text: &str) -> Result<Vec<Row>, ServiceError> {
    let refuse = |message: String| ServiceError::invalid("data", message);
    check_quotes(text).map_err(refuse)?;
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::Headers)
        .from_reader(text.as_bytes());
    let header = reader
        .headers()
        .map_err(|error| refuse(error.to_string()))?
        .clone();
    if let Some(unknown) = header.iter().find(|name| !COLUMNS.contains(name)) {
        return Err(refuse(format!("has an unknown column {unknown:?}")));
    }
    let twice = |name: &str| header.iter().filter(|other| *other == name).count() > 1;
    if let Some(twice) = header.iter().find(|name| twice(name)) {
        return Err(refuse(format!("has the column {twice} twice")));
    }
    if !header.iter().any(|name| name == "username") {
        return Err(refuse("has no column username".to_owned()));
    }
    let mut rows = Vec::new();
    for (at, record) in reader.records().enumerate() {
        let record = record.map_err(|error| refuse(format!("users[{at}]: {error}")))?;
        let row = read_record(&header, &record);
        rows.push(row.unwrap_or_else(|(field, why)| failed(field.to_owned(), why.to_owned())));
    }
    own(rows)
}

/// Reads a row of CSV, or says which field is wrong and why.
fn read_record(
    header: &csv::StringRecord,
    record: &csv::StringRecord,
) -> Result<Row, (&'static str, &'static str)> {
    // Notes and tags as they stand; of everything else outer spaces are no part.
    let whole = |name: &str| {
        let index = header.iter().position(|column| column == name)?;
        let text = bare(record.get(index)?);
        Some(text.to_owned()).filter(|text| !text.is_empty())
    };
    let field = |name: &str| {
        let index = header.iter().position(|column| column == name)?;
        let text = bare(record.get(index)?.trim()).trim();
        Some(text.to_owned()).filter(|text| !text.is_empty())
    };
    let number = |name: &'static str| match field(name) {
        Some(text) => whole_of(&text)
            .map(Some)
            .ok_or((name, "not a whole number")),
        None => Ok(None),
    };
    let expires_at = match field("expires_at") {
        Some(text) => {
            let moment = serde_json::from_value(Value::String(text));
            Some(moment.map_err(|_| ("expires_at", "not a moment in RFC 3339"))?)
        }
        None => None,
    };
    let hold = number("hold_duration_s")?.map(u32::try_from).transpose();
    Ok(Row {
        username: field("username").unwrap_or_default(),
        status: field("status"),
        plan_id: number("plan_id")?,
        home_region: field("home_region"),
        expires_at,
        hold_duration_s: hold.map_err(|_| ("hold_duration_s", NO_LENGTH))?,
        quota_bytes: number("quota_bytes")?,
        used_bytes: number("used_bytes")?,
        max_devices: number("max_devices")?,
        max_connections: number("max_connections")?,
        up_bytes_per_s: number("up_bytes_per_s")?,
        down_bytes_per_s: number("down_bytes_per_s")?,
        email: field("email"),
        telegram_id: number("telegram_id")?,
        note: whole("note"),
        tags: whole("tags").map_or_else(Vec::new, |tags| split(&tags)),
        ..Row::default()
    })
}
