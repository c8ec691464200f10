//! Imports of users: each row makes a user or is in the report, and nobody is made without the limits that stand there. What
//! our own exports say comes back as it was, quota and what was used of it. The same import again makes nobody.
//!
//! Planted bug: an export left a backslash in a tag as it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hy2_master_sdk::{
    domain::{RegionId, Timestamp},
    fuzzing::import::{self, Made, Outcome},
    service::{import::ImportFormat, moment::Moment, users::UserView},
};
use serde_json::Value;
use uuid::Uuid;

/// Takes the format and whether there is a plan, and the text of an export.
pub fn target(data: &[u8]) {
    let [format, flags, text @ ..] = data else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let format = match format % 4 {
        0 => ImportFormat::Csv,
        1 => ImportFormat::Json,
        2 => ImportFormat::Marzban,
        _ => ImportFormat::ThreeXUi,
    };
    let plan = (flags & 1 != 0).then_some(7);
    let Some(outcome) = imported(format, text, plan, &HashMap::new()) else {
        return;
    };
    let rows = match format {
        ImportFormat::Csv => records(text),
        _ => entries(format, text).expect("it was read"),
    };
    assert_eq!(outcome.rows, rows, "rows lost");
    accounted(&outcome);
    let there: HashMap<_, _> = outcome
        .made
        .iter()
        .map(|made| (made.user.username.clone(), made.user.note.clone()))
        .collect();
    let again = imported(format, text, plan, &there).expect("it was read");
    assert!(again.made.is_empty(), "twice: {:?}", again.made);
    comes_back(&outcome.made);
}

const NOW: Timestamp = Timestamp(1_800_000_000_000);

const REGIONS: [(RegionId, &str); 2] = [(RegionId(1), "us"), (RegionId(2), "eu-west")];

fn imported(
    format: ImportFormat,
    text: &str,
    plan: Option<i64>,
    there: &HashMap<String, String>,
) -> Option<Outcome> {
    let regions: HashMap<_, _> = REGIONS
        .map(|(number, code)| (code.to_owned(), number))
        .into();
    let data = Value::String(text.to_owned());
    import::imported(format, data, plan, &regions, NOW, there).ok()
}

/// Counts the records of CSV whose quotes are in order.
fn records(text: &str) -> usize {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut quoted, mut empty, mut count) = (false, true, 0);
    for letter in text.chars() {
        match letter {
            '\r' | '\n' if !quoted => {
                count += usize::from(!empty);
                empty = true;
            }
            _ => {
                quoted ^= letter == '"';
                empty = false;
            }
        }
    }
    // Without the header.
    count + usize::from(!empty) - 1
}

/// Counts the users of an export in JSON.
fn entries(format: ImportFormat, text: &str) -> Option<usize> {
    let data: Value = serde_json::from_str(text).ok()?;
    if format == ImportFormat::Json {
        return Some(data.as_array()?.len());
    }
    if format == ImportFormat::Marzban {
        return Some(data.get("users").or_else(|| data.get(0))?.as_array()?.len());
    }
    let inbounds = data.get("obj").unwrap_or(&data).as_array()?;
    let clients = inbounds.iter().filter_map(|inbound| {
        let settings = match inbound.get("settings")? {
            Value::String(text) => serde_json::from_str(text).ok()?,
            other => other.clone(),
        };
        Some(settings.get("clients")?.as_array()?.len())
    });
    Some(clients.sum())
}

/// Checks that no row is lost, and what everybody may rely on.
fn accounted(outcome: &Outcome) {
    let report = &outcome.report;
    let place = |path: &str| -> Option<usize> {
        let (number, _) = path.strip_prefix("users[")?.split_once(']')?;
        number.parse().ok()
    };
    let failed: BTreeSet<_> = report
        .failed
        .iter()
        .map(|issue| place(&issue.path).expect("a row"))
        .collect();
    let made: BTreeSet<_> = outcome.made.iter().map(|made| made.at).collect();
    assert_eq!(made.len(), outcome.made.len());
    assert!(failed.is_disjoint(&made));
    assert!(failed.iter().chain(&made).all(|at| *at < outcome.rows));
    assert_eq!(
        made.len() + failed.len() + report.skipped.len(),
        outcome.rows
    );
    assert_eq!(report.created, 0, "nobody is made yet");
    let mut names = BTreeSet::new();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@-".contains(c);
    for Made { name, user, used, .. } in &outcome.made {
        assert!((1..=64).contains(&user.username.len()) && user.username.chars().all(allowed));
        assert!(names.insert(&user.username), "twice: {}", user.username);
        let told = format!("{name} -> {}", user.username);
        assert_eq!(report.renamed.contains(&told), *name != user.username);
        // Whose name it is keeps it, and any other can be found.
        let own = name.trim();
        if own.len() <= 64 && own.chars().all(allowed) {
            assert_eq!(user.username, own);
        } else {
            assert!(!user.note.is_empty() || own.contains('\0'), "{name:?}");
        }
        let limits = [
            user.quota_bytes,
            user.max_devices,
            user.max_connections,
            user.up_bytes_per_s,
            user.down_bytes_per_s,
            user.hold_duration_s.map(i64::from),
        ];
        assert!(limits.into_iter().flatten().all(|limit| limit > 0));
        assert!((0..=1 << 50).contains(used));
        assert!(user.expires_at.is_none_or(|end| end.0.is_rfc_3339()));
        let over = user.expires_at.is_some_and(|end| end.0 <= NOW);
        assert!(!over || user.hold_duration_s.is_none(), "never starts");
        let texts = user.tags.iter().chain([&user.note]).chain(&user.email);
        assert!(texts.into_iter().all(|text| !text.contains('\0')));
        assert!(user.password.is_none() && user.node_ids.is_empty());
    }
}

/// Exports users in both ways and reads that.
fn comes_back(made: &[Made]) {
    if made.is_empty() {
        return;
    }
    let shown: Vec<_> = made.iter().map(view).collect();
    let codes: BTreeMap<_, _> = REGIONS
        .map(|(number, code)| (number, code.to_owned()))
        .into();
    for (format, text) in [
        (ImportFormat::Csv, import::csv(&shown, &codes)),
        (ImportFormat::Json, import::json(&shown, &codes)),
    ] {
        let text = text.expect("an export");
        let back = imported(format, &text, None, &HashMap::new())
            .unwrap_or_else(|| panic!("{format:?}: {text}"));
        assert_eq!(back.rows, made.len(), "{format:?}: {text}");
        let told = &back.report;
        assert!(told.failed.is_empty(), "{:?}: {text}", told.failed);
        assert!(told.renamed.is_empty() && told.skipped.is_empty() && told.ignored.is_empty());
        for (shown, back) in shown.iter().zip(&back.made) {
            let before = Fields::of(shown);
            assert_eq!(Fields::of(&view(back)), before, "{format:?}: {text}");
        }
    }
}

fn view(made: &Made) -> UserView {
    let user = made.user.clone();
    let status = match (made.disabled.is_some(), user.hold_duration_s) {
        (true, _) => "disabled",
        (false, Some(_)) => "on_hold",
        (false, None) => "active",
    };
    UserView {
        id: 5,
        uid: Uuid::nil(),
        username: user.username,
        status: status.to_owned(),
        status_reason: String::new(),
        plan_id: user.plan_id,
        home_region_id: user.home_region_id,
        admin_id: None,
        expires_at: user.expires_at,
        hold_duration_s: user.hold_duration_s.map(i64::from),
        quota_bytes: user.quota_bytes,
        used_bytes: made.used,
        tx_bytes: 1,
        rx_bytes: 2,
        max_devices: user.max_devices,
        max_connections: user.max_connections,
        up_bytes_per_s: user.up_bytes_per_s,
        down_bytes_per_s: user.down_bytes_per_s,
        chosen_password: false,
        email: user.email,
        telegram_id: user.telegram_id,
        note: user.note,
        tags: user.tags,
        online_at: None,
        rev: 1,
        created_at: Moment(NOW),
        updated_at: Moment(NOW),
    }
}

/// What has to come back.
#[derive(Debug, PartialEq)]
struct Fields {
    username: String,
    disabled: bool,
    /// Plan, region, quota, what was used, devices, connections, rates, Telegram.
    numbers: [Option<i64>; 9],
    end: Option<Moment>,
    hold: Option<i64>,
    texts: (Option<String>, String, Vec<String>),
}

impl Fields {
    fn of(user: &UserView) -> Self {
        // Who has started, for all that is known, has an end instead of a hold.
        let started = user.expires_at.is_some() && user.status != "on_hold";
        Self {
            username: user.username.clone(),
            disabled: user.status == "disabled",
            numbers: [
                user.plan_id,
                user.home_region_id,
                user.quota_bytes,
                Some(user.used_bytes),
                user.max_devices,
                user.max_connections,
                user.up_bytes_per_s,
                user.down_bytes_per_s,
                user.telegram_id,
            ],
            end: user.expires_at,
            hold: user.hold_duration_s.filter(|_| !started),
            texts: (user.email.clone(), user.note.clone(), user.tags.clone()),
        }
    }
}
