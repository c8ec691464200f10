//! Imports and exports without a store, for the fuzz targets.

use std::collections::BTreeMap;

use super::*;

/// What an import comes to.
#[derive(Debug)]
pub struct Outcome {
    /// How many rows the export has.
    pub rows: usize,
    /// Users to make.
    pub made: Vec<Made>,
    /// What is said of the rows, all of it.
    pub report: ImportReport,
}

/// A user to make.
#[derive(Debug)]
pub struct Made {
    /// Which row it is.
    pub at: usize,
    /// The name that it came with.
    pub name: String,
    /// The user.
    pub user: CreateUser,
    /// Why it is made disabled.
    pub disabled: Option<String>,
    /// What it has used of its quota.
    pub used: i64,
}

/// Reads an export, where there are users with these names and notes.
///
/// # Errors
///
/// It cannot be read as a whole, or names a region that there is not.
pub fn imported(
    format: ImportFormat,
    data: Value,
    plan_id: Option<i64>,
    regions: &HashMap<String, RegionId>,
    now: Timestamp,
    there: &HashMap<String, String>,
) -> Result<Outcome, ServiceError> {
    let rows = read(format, data)?;
    let mut outcome = Outcome {
        rows: rows.len(),
        made: Vec::new(),
        report: ImportReport::default(),
    };
    let mut names = Names::default();
    for one in sorted(rows, plan_id, regions, now, &mut outcome.report)? {
        let free = names.take_beside(there, &one);
        let Some(one) = named(one, free, &mut outcome.report) else {
            continue;
        };
        outcome.made.push(Made {
            at: one.at,
            name: one.name,
            user: one.user,
            disabled: one.past.disabled,
            used: one.past.used,
        });
    }
    Ok(outcome)
}

/// Writes users as CSV.
///
/// # Errors
///
/// None that anybody knows.
pub fn csv(users: &[UserView], codes: &BTreeMap<RegionId, String>) -> Result<String, ServiceError> {
    csv_of(users, codes)
}

/// Writes users as JSON.
///
/// # Errors
///
/// None that anybody knows.
pub fn json(
    users: &[UserView],
    codes: &BTreeMap<RegionId, String>,
) -> Result<String, ServiceError> {
    json_of(users, codes)
}
