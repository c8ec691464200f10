//! Regions: where nodes are, and where users are at home.
//!
//! The assignment task looks for a user's nodes in the user's home region first, and a configuration of
//! scope `region` is merged into that of every node in it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::moment::{Moment, present};
use super::{FieldIssue, Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::domain::{ConfigScope, RegionId, Timestamp};
use crate::store::regions::{self, NewRegion, RegionRow, RegionUses};
use crate::store::{StoreError, Tx, config_list};

/// Most regions.
const MAX_REGIONS: i64 = 1_000;

/// A region as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = Region)]
pub struct RegionView {
    /// Number.
    pub id: i64,
    /// Code: `us-east`.
    pub code: String,
    /// Name for people.
    pub name: String,
    /// Degrees north.
    pub latitude: Option<f64>,
    /// Degrees east.
    pub longitude: Option<f64>,
    /// Made at.
    pub created_at: Moment,
    /// Changed at.
    pub updated_at: Moment,
}

impl From<RegionRow> for RegionView {
    fn from(row: RegionRow) -> Self {
        Self {
            id: row.id.0,
            code: row.code,
            name: row.name,
            latitude: row.latitude,
            longitude: row.longitude,
            created_at: Moment(row.created_at),
            updated_at: Moment(row.updated_at),
        }
    }
}

/// A region to make.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateRegion {
    /// 1 to 32 of lower-case letters, digits and `-`; no two regions have the same.
    pub code: String,
    /// 1 to 64 bytes.
    pub name: String,
    /// Degrees north, -90 to 90; goes with `longitude`.
    pub latitude: Option<f64>,
    /// Degrees east, -180 to 180; goes with `latitude`.
    pub longitude: Option<f64>,
}

/// What changes of a region; absent fields stay, `null` clears the place.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateRegion {
    /// Code. Nodes, users and configurations refer to the number and stay where they are.
    pub code: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Degrees north.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<f64>)]
    pub latitude: Option<Option<f64>>,
    /// Degrees east.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<f64>)]
    pub longitude: Option<Option<f64>>,
}

impl Service {
    /// Lists every region.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn regions(&self, _access: Access<'_>) -> Result<Vec<RegionRow>, ServiceError> {
        Ok(regions::list(self.store()).await?)
    }

    /// Returns a region.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn region(
        &self,
        _access: Access<'_>,
        id: RegionId,
    ) -> Result<RegionRow, ServiceError> {
        Ok(regions::get(self.store(), id).await?)
    }

    /// Makes a region.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`], [`ServiceError::Conflict`] if the code is taken or there are too many.
    pub async fn create_region(
        &self,
        access: Access<'_>,
        new: CreateRegion,
    ) -> Result<RegionRow, ServiceError> {
        let new = NewRegion {
            code: new.code,
            name: new.name,
            latitude: new.latitude,
            longitude: new.longitude,
        };
        check(&new)?;
        let now = self.now();
        let mut tx = self.store().begin().await?;
        if regions::count(&mut tx).await? >= MAX_REGIONS {
            let detail = format!("there may be at most {MAX_REGIONS} regions");
            return Err(ServiceError::conflict("too_many_regions", detail));
        }
        let made = regions::create(&mut tx, &new, now).await?;
        let after = region_record(None, Some(&made), "region.created");
        record(&mut tx, access, after, now).await?;
        tx.commit().await?;
        Ok(made)
    }

    /// Changes a region.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Invalid`], [`ServiceError::Conflict`] if the code is taken.
    pub async fn update_region(
        &self,
        access: Access<'_>,
        id: RegionId,
        expected: Option<i64>,
        change: UpdateRegion,
    ) -> Result<RegionRow, ServiceError> {
        let mut tx = self.store().begin().await?;
        let old = regions::get_for_update(&mut tx, id).await?;
        check_state(&old, expected)?;
        // Two states never have one time.
        let now = self.now().max(Timestamp(old.updated_at.0 + 1));
        let wanted = NewRegion {
            code: change.code.unwrap_or_else(|| old.code.clone()),
            name: change.name.unwrap_or_else(|| old.name.clone()),
            latitude: change.latitude.unwrap_or(old.latitude),
            longitude: change.longitude.unwrap_or(old.longitude),
        };
        check(&wanted)?;
        let new = regions::update(&mut tx, id, &wanted, now).await?;
        let both = region_record(Some(&old), Some(&new), "region.updated");
        record(&mut tx, access, both, now).await?;
        tx.commit().await?;
        Ok(new)
    }

    /// Removes a region that nothing uses.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Stale`], [`ServiceError::Conflict`] if a node, a user, an open enrolment token or a
    /// configuration uses it.
    pub async fn delete_region(
        &self,
        access: Access<'_>,
        id: RegionId,
        expected: Option<i64>,
    ) -> Result<(), ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        // No configuration comes into force for it meanwhile.
        config_list::lock(&mut tx).await?;
        let old = regions::get_for_update(&mut tx, id).await?;
        check_state(&old, expected)?;
        let uses = regions::uses(&mut tx, id, now).await?;
        let configured = is_configured(&mut tx, id).await?;
        if !uses.is_none() || configured {
            return Err(in_use(uses, configured));
        }
        regions::delete(&mut tx, id, now).await?;
        let before = region_record(Some(&old), None, "region.deleted");
        record(&mut tx, access, before, now).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Fails unless the region is as the caller knows it; its state is known by the time of its last change.
fn check_state(region: &RegionRow, expected: Option<i64>) -> Result<(), ServiceError> {
    match expected {
        Some(expected) if expected != region.updated_at.0 => Err(ServiceError::Stale("region")),
        _ => Ok(()),
    }
}

/// Fails unless the region that something is put into exists; `field` says by which field.
pub(super) async fn check_region(
    tx: &mut Tx,
    field: &str,
    region: Option<i64>,
) -> Result<(), ServiceError> {
    let Some(region) = region else {
        return Ok(());
    };
    match regions::check(tx, RegionId(region)).await {
        Err(StoreError::NotFound(_)) => Err(no_region(field)),
        found => Ok(found?),
    }
}

/// Says that a field names a region that is not there.
pub(crate) fn no_region(field: impl Into<String>) -> ServiceError {
    ServiceError::invalid(field, "there is no such region")
}

/// Returns whether a configuration is in force for a region. Revisions are kept for ever; one that says
/// nothing, but for how long an obfuscation of before is accepted, takes the ones before it out of force.
async fn is_configured(tx: &mut Tx, id: RegionId) -> Result<bool, ServiceError> {
    let newest = config_list::newest(tx, ConfigScope::Region, id.0).await?;
    Ok(newest.is_some_and(|row| {
        let fields = row.body.0.as_object();
        fields.is_some_and(|fields| fields.keys().any(|field| field != "previous_obfs"))
    }))
}

fn in_use(uses: RegionUses, configured: bool) -> ServiceError {
    let counted = |count: i64, one: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        many => Some(format!("{many} {one}s")),
    };
    let parts = [
        counted(uses.nodes, "node"),
        counted(uses.users, "user"),
        counted(uses.tokens, "open enrolment token"),
        configured.then(|| "its configuration (put an empty one)".to_owned()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let detail = format!("the region is in use by {}", parts.join(", "));
    ServiceError::conflict("in_use", detail)
}

fn check(region: &NewRegion) -> Result<(), ServiceError> {
    let mut issues = Vec::new();
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !(1..=32).contains(&region.code.len()) || !region.code.bytes().all(allowed) {
        let message = "must be 1 to 32 of lower-case letters, digits and -";
        issues.push(FieldIssue::new("code", message));
    }
    if !(1..=64).contains(&region.name.len()) || region.name.contains(char::is_control) {
        issues.push(FieldIssue::new("name", "must have 1 to 64 bytes"));
    }
    let degrees = [
        ("latitude", region.latitude, 90.0),
        ("longitude", region.longitude, 180.0),
    ];
    for (field, value, most) in degrees {
        if value.is_some_and(|value| !(-most..=most).contains(&value)) {
            let message = format!("must be between -{most} and {most}");
            issues.push(FieldIssue::new(field, message));
        }
    }
    let missing = match (region.latitude, region.longitude) {
        (Some(_), None) => Some(("longitude", "must come with latitude")),
        (None, Some(_)) => Some(("latitude", "must come with longitude")),
        _ => None,
    };
    issues.extend(missing.map(|(field, message)| FieldIssue::new(field, message)));
    if issues.is_empty() {
        Ok(())
    } else {
        Err(ServiceError::Invalid(issues))
    }
}

fn region_record<'a>(
    before: Option<&RegionRow>,
    after: Option<&RegionRow>,
    topic: &'a str,
) -> Record<'a> {
    let shown = |row: &RegionRow| {
        serde_json::to_value(RegionView::from(row.clone())).unwrap_or(Value::Null)
    };
    Record {
        kind: "region",
        id: before
            .or(after)
            .map(|row| row.id.to_string())
            .unwrap_or_default(),
        before: before.map(shown),
        after: after.map(shown),
        owner: None,
        topic,
    }
}
