//! Webhooks.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::extract::{Auth, Body, IfMatch, Params, Path, Tagged};
use super::problem::Problem;
use super::{ApiState, Items, PageOf, errors};
use crate::auth::access::Operation;
use crate::service::page::PageRequest;
use crate::service::webhooks::{CreateWebhook, DeliveryView, UpdateWebhook, WebhookView};

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_webhooks, create_webhook))
        .routes(routes!(get_webhook, update_webhook, delete_webhook))
        .routes(routes!(rotate_webhook))
        .routes(routes!(list_webhook_deliveries))
        .routes(routes!(retry_webhook_delivery))
}

/// Which deliveries.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DeliveryQuery {
    /// Only those that are `pending`, `delivered` or `failed`.
    status: Option<String>,
    /// Items of a page, 1 to 500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    size: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
}

/// A webhook, with the key of its signatures this once.
#[derive(Serialize, ToSchema)]
struct CreatedWebhook {
    /// Key of the HMAC-SHA256 in `Hy2-Signature`.
    secret: String,
    /// What is known of it.
    #[serde(flatten)]
    view: WebhookView,
}

/// Lists webhooks.
#[utoipa::path(get, path = "/webhooks", tag = "webhooks",
    responses((status = 200, body = Items<WebhookView>), errors::Common))]
async fn list_webhooks(
    State(state): State<ApiState>,
    auth: Auth,
) -> Result<Json<Items<WebhookView>>, Problem> {
    Ok(Items::of(
        state
            .service
            .webhooks(auth.access(Operation::ListWebhooks)?)
            .await?,
    ))
}

/// Makes a webhook, sent to from now on.
///
/// Each event is a `POST` of `{"id", "seq", "topic", "key", "at", "payload"}` as JSON: `id` is that of the delivery, the
/// same in every try, `seq` the number of the event. Headers: `Hy2-Delivery` (the id), `Hy2-Attempt` (from 1), and
/// `Hy2-Signature`: `t=SECONDS,v1=HEX`, where `HEX` is the HMAC-SHA256 of `SECONDS.BODY` under `secret` as it stands.
/// Any 2xx within 10 seconds takes a delivery; anything else, redirects too, is tried again after 5, 10, 20 … seconds, at
/// most an hour, for a day. Deliveries may come twice and in any order. What is given up is `failed` in the list of
/// deliveries, and an event `webhook.failed`.
#[utoipa::path(post, path = "/webhooks", tag = "webhooks", request_body = CreateWebhook,
    responses((status = 201, body = CreatedWebhook), errors::Common))]
async fn create_webhook(
    State(state): State<ApiState>,
    auth: Auth,
    Body(new): Body<CreateWebhook>,
) -> Result<(StatusCode, Json<CreatedWebhook>), Problem> {
    let access = auth.access(Operation::CreateWebhook)?;
    let (row, secret) = state.service.create_webhook(access, new).await?;
    let made = CreatedWebhook {
        secret: secret.expose_secret().to_owned(),
        view: row.into(),
    };
    Ok((StatusCode::CREATED, Json(made)))
}

/// Returns a webhook.
#[utoipa::path(get, path = "/webhooks/{id}", tag = "webhooks", params(("id" = Uuid, Path)),
    responses((status = 200, body = WebhookView), errors::Common))]
async fn get_webhook(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<Uuid>,
) -> Result<Tagged<WebhookView>, Problem> {
    let row = state
        .service
        .webhook(auth.access(Operation::GetWebhook)?, id)
        .await?;
    Ok(Tagged(row.rev, row.into()))
}

/// Changes a webhook.
#[utoipa::path(patch, path = "/webhooks/{id}", tag = "webhooks", request_body = UpdateWebhook,
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = WebhookView), errors::Common))]
async fn update_webhook(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<Uuid>,
    IfMatch(expected): IfMatch,
    Body(change): Body<UpdateWebhook>,
) -> Result<Tagged<WebhookView>, Problem> {
    let access = auth.access(Operation::UpdateWebhook)?;
    let row = state
        .service
        .update_webhook(access, id, expected, change)
        .await?;
    Ok(Tagged(row.rev, row.into()))
}

/// Removes a webhook.
#[utoipa::path(delete, path = "/webhooks/{id}", tag = "webhooks", params(("id" = Uuid, Path)),
    responses((status = 204), errors::Common))]
async fn delete_webhook(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    state
        .service
        .delete_webhook(auth.access(Operation::DeleteWebhook)?, id)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a webhook a new key of its signatures, shown this once. Deliveries are signed with it from now on, also
/// those that wait; the old key is worth nothing.
#[utoipa::path(post, path = "/webhooks/{id}/rotate", tag = "webhooks", params(("id" = Uuid, Path)),
    responses((status = 200, body = CreatedWebhook), errors::Common))]
async fn rotate_webhook(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<Uuid>,
) -> Result<Json<CreatedWebhook>, Problem> {
    let access = auth.access(Operation::RotateWebhook)?;
    let (row, secret) = state.service.rotate_webhook(access, id).await?;
    Ok(Json(CreatedWebhook {
        secret: secret.expose_secret().to_owned(),
        view: row.into(),
    }))
}

/// Lists deliveries of a webhook, the newest first.
#[utoipa::path(get, path = "/webhooks/{id}/deliveries", tag = "webhooks",
    params(("id" = Uuid, Path), DeliveryQuery),
    responses((status = 200, body = PageOf<DeliveryView>), errors::Common))]
async fn list_webhook_deliveries(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<Uuid>,
    Params(query): Params<DeliveryQuery>,
) -> Result<Json<PageOf<DeliveryView>>, Problem> {
    let access = auth.access(Operation::ListWebhookDeliveries)?;
    let page = PageRequest {
        size: query.size,
        after: query.after,
    };
    let status = query.status.as_deref();
    Ok(PageOf::of(
        state
            .service
            .webhook_deliveries(access, id, status, &page)
            .await?,
    ))
}

/// Sends a delivery again, whatever became of it: at once under the same id, and for another day if it is not taken.
/// Of a webhook that is disabled it waits. 409, `event_gone`, when its event is not kept any more.
#[utoipa::path(post, path = "/webhooks/{id}/deliveries/{delivery}/retry", tag = "webhooks",
    params(("id" = Uuid, Path), ("delivery" = Uuid, Path)),
    responses((status = 200, body = DeliveryView), errors::Common))]
async fn retry_webhook_delivery(
    State(state): State<ApiState>,
    auth: Auth,
    Path((id, delivery)): Path<(Uuid, Uuid)>,
) -> Result<Json<DeliveryView>, Problem> {
    let access = auth.access(Operation::RetryWebhookDelivery)?;
    let row = state
        .service
        .retry_webhook_delivery(access, id, delivery)
        .await?;
    Ok(Json(row.into()))
}
