//! Webhooks.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use secrecy::ExposeSecret;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::admins::PageQuery;
use super::extract::{Auth, Body, IfMatch, Params, Path, Tagged};
use super::problem::Problem;
use super::{ApiState, Items, PageOf, errors};
use crate::auth::access::Operation;
use crate::service::webhooks::{CreateWebhook, DeliveryView, UpdateWebhook, WebhookView};

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_webhooks, create_webhook))
        .routes(routes!(get_webhook, update_webhook, delete_webhook))
        .routes(routes!(list_webhook_deliveries))
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

/// Lists deliveries of a webhook, the newest first.
#[utoipa::path(get, path = "/webhooks/{id}/deliveries", tag = "webhooks",
    params(("id" = Uuid, Path), PageQuery),
    responses((status = 200, body = PageOf<DeliveryView>), errors::Common))]
async fn list_webhook_deliveries(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<Uuid>,
    Params(query): Params<PageQuery>,
) -> Result<Json<PageOf<DeliveryView>>, Problem> {
    let access = auth.access(Operation::ListWebhookDeliveries)?;
    Ok(PageOf::of(
        state
            .service
            .webhook_deliveries(access, id, &query.into())
            .await?,
    ))
}
