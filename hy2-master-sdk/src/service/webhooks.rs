//! Webhooks, as operators manage them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::types::Json;
use url::Url;
use utoipa::ToSchema;
use uuid::Uuid;

use super::moment::Moment;
use super::page::{Page, PageRequest};
use super::{FieldIssue, Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::auth::topics;
use crate::domain::Timestamp;
use crate::store::nodes::check_rev;
use crate::store::webhooks::{self, DeliveryRow, FAILED_TOPIC, WebhookRow};
use crate::store::{StoreError, Tx, events};

/// Webhooks that there may be.
const MAX_WEBHOOKS: i64 = 100;

/// Events looked at in one step.
const PLANNED_AT_ONCE: i64 = 500;

/// What becomes of deliveries.
const DELIVERY_STATUSES: [&str; 3] = ["pending", "delivered", "failed"];

/// Where sealed secrets of webhooks belong.
pub(crate) const SECRET_PLACE: &str = "webhooks.secret";

/// A webhook as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Webhook)]
pub struct WebhookView {
    /// Id.
    pub id: Uuid,
    /// Where to send.
    pub url: String,
    /// What to send: `user.*`, `node.state_set`; empty: everything.
    pub topics: Vec<String>,
    /// Whether it is sent to.
    pub enabled: bool,
    /// Events up to this number have their deliveries.
    pub cursor: i64,
    /// Revision, also the `ETag`.
    pub rev: i64,
    /// Made at.
    pub created_at: Moment,
    /// Changed at.
    pub updated_at: Moment,
}

impl From<WebhookRow> for WebhookView {
    fn from(row: WebhookRow) -> Self {
        Self {
            id: row.id,
            url: row.url,
            topics: row.topics.0,
            enabled: row.enabled,
            cursor: row.cursor_seq,
            rev: row.rev,
            created_at: Moment(row.created_at),
            updated_at: Moment(row.updated_at),
        }
    }
}

/// A delivery as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = WebhookDelivery)]
pub struct DeliveryView {
    /// Id, told to the receiver.
    pub id: Uuid,
    /// Number of the event.
    pub event: i64,
    /// `pending`, `delivered`, or `failed`: given up.
    pub status: String,
    /// Tries so far.
    pub attempts: i64,
    /// Next try.
    pub next_at: Moment,
    /// Until when it is tried: a day from when it was made, or sent again by hand.
    pub give_up_at: Moment,
    /// HTTP status of the last try.
    pub response_status: Option<i64>,
    /// Why the last try failed.
    pub error: Option<String>,
    /// Made at.
    pub created_at: Moment,
}

impl From<DeliveryRow> for DeliveryView {
    fn from(row: DeliveryRow) -> Self {
        Self {
            id: row.id,
            event: row.event_seq,
            status: row.status,
            attempts: row.attempts,
            next_at: Moment(row.next_at),
            give_up_at: Moment(row.give_up_at),
            response_status: row.response_status,
            error: row.error,
            created_at: Moment(row.created_at),
        }
    }
}

/// A webhook to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWebhook {
    /// Where to send: `https`, to a public address.
    pub url: String,
    /// What to send: `user.*`, `node.state_set`; empty: everything.
    #[serde(default)]
    pub topics: Vec<String>,
}

/// What changes of a webhook; absent fields stay.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateWebhook {
    /// Where to send.
    pub url: Option<String>,
    /// What to send.
    pub topics: Option<Vec<String>>,
    /// Whether it is sent to. Switched off, deliveries that are not done wait, until their day is over.
    /// Switched on again, they are sent; what happened meanwhile is not.
    pub enabled: Option<bool>,
}

impl Service {
    /// Lists webhooks.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn webhooks(&self, _access: Access<'_>) -> Result<Vec<WebhookRow>, ServiceError> {
        Ok(webhooks::list(self.store()).await?)
    }

    /// Returns a webhook.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn webhook(&self, _access: Access<'_>, id: Uuid) -> Result<WebhookRow, ServiceError> {
        Ok(webhooks::get(self.store(), id).await?)
    }

    /// Makes a webhook; the key of its signatures is returned this once.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`], [`ServiceError::DeniedField`] if an API token asks for what it may not read,
    /// [`ServiceError::Conflict`] if there are too many.
    pub async fn create_webhook(
        &self,
        access: Access<'_>,
        new: CreateWebhook,
    ) -> Result<(WebhookRow, SecretString), ServiceError> {
        self.check_webhook(Some(&new.url), Some(&new.topics))?;
        check_topics(access, &new.topics)?;
        let now = self.now();
        let id = Uuid::new_v4();
        let (secret, secret_enc) = self.new_secret(id);
        let mut tx = self.store().begin().await?;
        let row = WebhookRow {
            id,
            url: new.url,
            secret_enc,
            topics: Json(new.topics),
            enabled: true,
            cursor_seq: events::seal_all(&mut tx).await?,
            created_by: Some(access.caller().admin).filter(|admin| admin.0 > 0),
            rev: 1,
            created_at: now,
            updated_at: now,
        };
        if webhooks::count(&mut tx).await? >= MAX_WEBHOOKS {
            let detail = format!("there may be at most {MAX_WEBHOOKS} webhooks");
            return Err(ServiceError::conflict("too_many_webhooks", detail));
        }
        webhooks::insert(&mut tx, &row).await?;
        record(
            &mut tx,
            access,
            hook_record(None, Some(&row), "webhook.created"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok((row, secret))
    }

    /// Makes a key of signatures; returns it plain and sealed.
    fn new_secret(&self, webhook: Uuid) -> (SecretString, Vec<u8>) {
        let random = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let secret = format!("whsec_{random}");
        let sealed = self
            .vault()
            .seal(SECRET_PLACE, webhook.as_bytes(), secret.as_bytes());
        (secret.into(), sealed)
    }

    /// Gives a webhook a new key of its signatures, which is returned this once. Deliveries are signed
    /// with it from now on; the old one is worth nothing.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn rotate_webhook(
        &self,
        access: Access<'_>,
        id: Uuid,
    ) -> Result<(WebhookRow, SecretString), ServiceError> {
        let now = self.now();
        let old = webhooks::get(self.store(), id).await?;
        let (secret, sealed) = self.new_secret(id);
        let mut tx = self.store().begin().await?;
        let row = webhooks::set_secret(&mut tx, id, &sealed, now).await?;
        record(
            &mut tx,
            access,
            hook_record(Some(&old), Some(&row), "webhook.rotated"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok((row, secret))
    }

    /// Changes a webhook. What happened before it is switched off or told other topics is sent as it was
    /// asked for then.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Stale`], [`ServiceError::Invalid`], [`ServiceError::DeniedField`] if an API
    /// token asks for what it may not read.
    pub async fn update_webhook(
        &self,
        access: Access<'_>,
        id: Uuid,
        expected: Option<i64>,
        change: UpdateWebhook,
    ) -> Result<WebhookRow, ServiceError> {
        self.check_webhook(change.url.as_deref(), change.topics.as_deref())?;
        let now = self.now();
        // One that is far behind comes near in steps: the rest, in the transaction, holds up the sealer.
        let mut behind = change.enabled.is_some() || change.topics.is_some();
        while behind {
            behind = self
                .plan_webhook(&webhooks::get(self.store(), id).await?)
                .await?;
        }
        let mut tx = self.store().begin().await?;
        let old = webhooks::lock(&mut tx, id).await?;
        check_rev("webhook", expected, old.rev)?;
        if change.url.is_some() || change.topics.is_some() {
            let wanted = change.topics.as_ref().unwrap_or(&old.topics.0);
            check_topics(access, wanted)?;
        }
        let enabled = change.enabled.unwrap_or(old.enabled);
        let other_topics = change
            .topics
            .as_ref()
            .is_some_and(|topics| *topics != old.topics.0);
        let cursor_seq = match enabled != old.enabled || other_topics {
            true => {
                let newest = events::seal_all(&mut tx).await?;
                if old.enabled {
                    plan_rest(&mut tx, &old, now).await?;
                }
                newest
            }
            false => old.cursor_seq,
        };
        let row = WebhookRow {
            url: change.url.unwrap_or_else(|| old.url.clone()),
            topics: change.topics.map_or_else(|| old.topics.clone(), Json),
            enabled,
            cursor_seq,
            ..old.clone()
        };
        webhooks::update(&mut tx, &row, now).await?;
        let row = WebhookRow {
            rev: row.rev + 1,
            updated_at: now,
            ..row
        };
        record(
            &mut tx,
            access,
            hook_record(Some(&old), Some(&row), "webhook.updated"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Makes the deliveries of the next events, if the webhook is on and still what it was. Returns whether there
    /// may be more.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub(crate) async fn plan_webhook(&self, hook: &WebhookRow) -> Result<bool, StoreError> {
        if !hook.enabled {
            return Ok(false);
        }
        let store = self.store();
        let read = events::after(store, hook.cursor_seq, PLANNED_AT_ONCE).await?;
        let Some(last) = read.last().map(|event| event.seq) else {
            return Ok(false);
        };
        webhooks::plan(store, hook, &wanted(hook, &read), last, self.now()).await?;
        Ok(i64::try_from(read.len()).is_ok_and(|read| read >= PLANNED_AT_ONCE))
    }

    /// Removes a webhook.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn delete_webhook(&self, access: Access<'_>, id: Uuid) -> Result<(), ServiceError> {
        let now = self.now();
        let old = webhooks::get(self.store(), id).await?;
        let mut tx = self.store().begin().await?;
        webhooks::delete(&mut tx, id).await?;
        record(
            &mut tx,
            access,
            hook_record(Some(&old), None, "webhook.deleted"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Lists deliveries of a webhook, all or those of a status, the newest first.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Invalid`] of the page or the status.
    pub async fn webhook_deliveries(
        &self,
        access: Access<'_>,
        id: Uuid,
        status: Option<&str>,
        page: &PageRequest,
    ) -> Result<Page<DeliveryRow>, ServiceError> {
        if status.is_some_and(|status| !DELIVERY_STATUSES.contains(&status)) {
            let message = format!("must be one of {}", DELIVERY_STATUSES.join(", "));
            return Err(ServiceError::invalid("status", message));
        }
        self.webhook(access, id).await?;
        let limit = page.limit()?;
        let before = page.key::<i64>()?;
        let limit_and_one = i64::from(limit) + 1;
        let rows = webhooks::deliveries(self.store(), id, status, before, limit_and_one).await?;
        Ok(Page::new(rows, limit, |row| row.event_seq))
    }

    /// Sends a delivery again, whatever became of it: at once, and for another day if it is not taken.
    /// Its id stays.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Conflict`] if its event is not kept any more.
    pub async fn retry_webhook_delivery(
        &self,
        access: Access<'_>,
        id: Uuid,
        delivery: Uuid,
    ) -> Result<DeliveryRow, ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let old = webhooks::delivery(&mut tx, id, delivery).await?;
        match events::get(self.store(), old.event_seq).await {
            Ok(_) => {}
            Err(StoreError::NotFound(_)) => {
                let detail = "the event is not kept any more".to_owned();
                return Err(ServiceError::conflict("event_gone", detail));
            }
            Err(error) => return Err(error.into()),
        }
        let row = webhooks::retry(&mut tx, delivery, now).await?;
        let view = |row: &DeliveryRow| {
            serde_json::to_value(DeliveryView::from(row.clone())).unwrap_or(Value::Null)
        };
        let retried = Record {
            kind: "webhook_delivery",
            id: delivery.to_string(),
            before: Some(view(&old)),
            after: Some(view(&row)),
            owner: None,
            topic: "webhook.delivery_retried",
        };
        record(&mut tx, access, retried, now).await?;
        tx.commit().await?;
        Ok(row)
    }

    fn check_webhook(
        &self,
        url: Option<&str>,
        topics: Option<&[String]>,
    ) -> Result<(), ServiceError> {
        let mut issues = Vec::new();
        if let Some(url) = url {
            let parsed = Url::parse(url).ok().filter(|_| url.len() <= 2_000);
            let allowed = parsed.is_some_and(|url| self.targets().allows_url(&url));
            if !allowed {
                let message = "must be an https address of a public host, without credentials";
                issues.push(FieldIssue::new("url", message));
            }
        }
        let bad = |topic: &String| {
            let allowed = |c: char| c.is_ascii_lowercase() || "._*".contains(c);
            !(1..=64).contains(&topic.len()) || !topic.chars().all(allowed)
        };
        if topics.is_some_and(|topics| topics.len() > 64 || topics.iter().any(bad)) {
            let message = "must have at most 64 entries such as user.* or node.state_set";
            issues.push(FieldIssue::new("topics", message));
        }
        if issues.is_empty() {
            Ok(())
        } else {
            Err(ServiceError::Invalid(issues))
        }
    }
}

/// Checks that the caller reads by itself what a webhook with these topics is told.
fn check_topics(access: Access<'_>, wanted: &[String]) -> Result<(), ServiceError> {
    topics::check_webhook(access.caller(), wanted).map_err(|denied| {
        let may = topics::of_webhooks(access.caller());
        let may = match may.is_empty() {
            true => "none".to_owned(),
            false => may.join(", "),
        };
        let message = format!(
            "tell of more than the token may read (none named and * are everything); it may have {may}"
        );
        let issue = FieldIssue::new("topics", message);
        ServiceError::DeniedField { denied, issue }
    })
}

/// Makes the deliveries of all events that are numbered.
async fn plan_rest(tx: &mut Tx, hook: &WebhookRow, now: Timestamp) -> Result<(), StoreError> {
    let mut after = hook.cursor_seq;
    loop {
        let read = events::after_in(tx, after, PLANNED_AT_ONCE).await?;
        let Some(last) = read.last() else {
            return Ok(());
        };
        after = last.seq;
        webhooks::add_deliveries(tx, hook.id, &wanted(hook, &read), now).await?;
    }
}

/// Returns the numbers of the events that a webhook is told.
fn wanted(hook: &WebhookRow, events: &[events::Event]) -> Vec<i64> {
    // Nobody is told that they cannot be told.
    let own = hook.id.to_string();
    let of_itself = |event: &&events::Event| event.topic == FAILED_TOPIC && event.key == own;
    events
        .iter()
        .filter(|event| topics::matches(&hook.topics.0, &event.topic) && !of_itself(event))
        .filter(|event| topics::webhooks_hear(&event.topic))
        .map(|event| event.seq)
        .collect()
}

fn hook_record<'a>(
    before: Option<&WebhookRow>,
    after: Option<&WebhookRow>,
    topic: &'a str,
) -> Record<'a> {
    let view = |row: &WebhookRow| {
        serde_json::to_value(WebhookView::from(row.clone())).unwrap_or(Value::Null)
    };
    Record {
        kind: "webhook",
        id: before
            .or(after)
            .map(|row| row.id.to_string())
            .unwrap_or_default(),
        before: before.map(view),
        after: after.map(view),
        owner: None,
        topic,
    }
}
